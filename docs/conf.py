"""The site of these pages, which `make docs` builds. Each page also stands on GitHub as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
REPOSITORY = "https://github.com/dolead/prometheus-distributed-client/blob/HEAD/"

MOST_COLUMNS = 3
"""A narrow screen has room for so many."""

project = "prometheus-distributed-client"
extensions = ["myst_parser"]
myst_heading_anchors = 6  # titles of all levels have the anchors that GitHub gives them
html_theme = "furo"
html_title = project
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_use_index = False
smartquotes = False  # texts as they are written


def navigation(index: str) -> str:
    """The navigation: for each title of the index the pages that the list below it links to."""
    lists = []
    for title, section in re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", index, re.MULTILINE):
        pages = re.findall(r"^- \[[^]]*\]\(([\w-]+)\.md\)", section, re.MULTILINE)
        lists.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"]))
    return "\n\n".join(lists)


def to_repository(link: re.Match[str]) -> str:
    """The URL of a file outside of this folder, which is on GitHub and not on the site. Raises FileNotFoundError."""
    path = (DOCS.parent / link[1]).resolve(strict=True)
    return f"]({REPOSITORY}{path.relative_to(DOCS.parent)}"


def prepare(app: Any, name: str, source: list[str]) -> None:  # noqa: ARG001 - Sphinx calls it with the application
    """Make a page of GitHub one of the site. Sphinx reads it from `source`, a list of one text."""
    source[0] = re.sub(r"\]\(\.\./([^)#]+)", to_repository, source[0])
    if name == "index":
        source[0] += f"\n{navigation(source[0])}\n"


def label_cells(app: Any, tree: Any, name: str) -> None:  # noqa: ARG001 - the same
    """Put the title of its column into each cell of a wide table: narrow screens show a row as a list of its cells."""
    from docutils import nodes

    for table in tree.findall(nodes.tgroup):
        titles = [entry.astext() for entry in table.next_node(nodes.thead).findall(nodes.entry)]
        for row in table.next_node(nodes.tbody).children if len(titles) > MOST_COLUMNS else ():
            row.parent.parent.parent["classes"] = ["wide"]
            for title, entry in list(zip(titles, row.children, strict=True))[1:]:
                if entry.astext():
                    entry[0].insert(0, nodes.inline("", f"{title}: ", classes=["title"]))
                else:
                    entry["classes"].append("empty")


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx prepare each page."""
    app.connect("source-read", prepare)
    app.connect("doctree-resolved", label_cells)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
