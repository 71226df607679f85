"""The documents as a whole: the navigation of the site of docs/, and links between documents, which also GitHub shows."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "example_apps" / "README.md"]
ON_GITHUB = re.compile(r"https://github\.com/dolead/prometheus-distributed-client/(?:blob|tree)/HEAD/")
ANCHORS: dict[Path, set[str]] = {}


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub and the site give to the titles of a document."""
    if path not in ANCHORS:
        text = re.sub(r"(?ms)^```.*?^```$", "", path.read_text(encoding="utf-8"))
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        ANCHORS[path] = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    return ANCHORS[path]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """The configuration of the site."""
    spec = spec_from_file_location("site_of_docs", ROOT / "docs" / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_titles(document: Path) -> None:
    """Each link of a document to this repository leads to a file that exists, and to a title in it."""
    text = re.sub(r"(?ms)^```.*?^```$", "", document.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)]+)\)", text):
        target, _, section = link.partition("#")
        on_github = ON_GITHUB.match(target)
        if "://" in target and on_github is None:
            continue
        linked = ROOT / target[on_github.end() :] if on_github else (document.parent / target if target else document)
        assert linked.exists(), f"expected a file for the link {link}"
        assert not section or section in anchors(linked), f"expected a title for {link}, got {sorted(anchors(linked))}"


def test_the_navigation_has_each_page(site: ModuleType) -> None:
    """Each page of docs/ is once in the index, so it is once in the navigation of the site."""
    pages = sorted(path.stem for path in (ROOT / "docs").glob("*.md") if path.stem != "index")
    navigation = site.navigation((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert sorted(re.findall(r"^[\w-]+$", navigation, re.MULTILINE)) == pages, "docs/index.md must have a line for each page"
    assert ":caption: Start\n" in navigation


def test_links_out_of_the_docs_lead_to_the_repository(site: ModuleType) -> None:
    """A link to a file outside of docs/ is a URL on the site, and an error where there is no such file."""
    source = ["[a](../example_apps/README.md#programs) [b](redis.md)"]
    site.prepare(None, "jobs", source)
    assert source == [f"[a]({site.REPOSITORY}example_apps/README.md#programs) [b](redis.md)"]
    with pytest.raises(FileNotFoundError):
        site.prepare(None, "jobs", ["[a](../nothing.py)"])
