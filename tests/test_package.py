"""The package as a whole: its metadata, its files and its imports."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
import re
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import prometheus_client
import pytest
import wheel_smoke
from conftest import ROOT

import pdc
import pdc.redis
import pdc.sqlite
import pdc_starlette
from pdc.options import Options

DISTRIBUTION = "prometheus-distributed-client"
FOLDERS = ("pdc", "pdc_flask", "pdc_django", "pdc_starlette", "tests", "benchmarks", "example_apps", "monitoring")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def requirements() -> set[str]:
    """The requirements of the distribution, each with its extra."""
    return {re.sub(r"\s|'|\"", "", requirement) for requirement in metadata.requires(DISTRIBUTION) or []}


def test_the_metadata_of_the_installed_distribution_is_that_of_the_checkout() -> None:
    """The version, the name of the licence and the oldest Python of the metadata match pyproject.toml."""
    about = metadata.metadata(DISTRIBUTION)
    assert f'version = "{about["Version"]}"' in PYPROJECT
    assert f'license = "{about["License-Expression"]}"' in PYPROJECT
    assert f'requires-python = "{about["Requires-Python"]}"' in PYPROJECT


def test_a_plain_install_brings_no_driver_and_no_framework() -> None:
    """Without extras only prometheus_client is required; there is an extra for each driver and framework, and all."""
    assert {requirement for requirement in requirements() if "extra==" not in requirement} == {"prometheus_client>=0.23.1"}
    assert set(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ()) == {
        "redis",
        "flask",
        "django",
        "starlette",
        "fastapi",
        "celery",
        "rq",
        "dramatiq",
        "cli",
        "all",
    }
    assert {requirement for requirement in requirements() if "extra==redis" in requirement} == {
        "redis>=5;extra==redis",
        "hiredis>=3;extra==redis",
    }


def test_the_readme_links_work_on_a_package_index() -> None:
    """Each link of the README is absolute, and links to this repository lead to existing files and sections."""
    homepage = dict(each.split(", ") for each in metadata.metadata(DISTRIBUTION).get_all("Project-URL") or ())["Homepage"]
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    pictures = [link for link in links if link.endswith(".png")]
    assert len(links) > len(pictures) > 0
    for link in pictures:  # the page of a file is no picture
        assert (ROOT / link.removeprefix(f"{homepage}/raw/HEAD/")).read_bytes().startswith(b"\x89PNG")
    for link in {*links}.difference(pictures):
        assert link.startswith(f"{homepage}/blob/HEAD/")
        name, _, section = link.removeprefix(f"{homepage}/blob/HEAD/").partition("#")
        titles = re.findall(r"^#+ (.*)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert not section or section in {title.lower().replace(" ", "-") for title in titles}


def test_the_source_distribution_has_all_that_the_readme_names() -> None:
    """Files of the repository that the README links to are in the source distribution, by a line of MANIFEST.in."""
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").split()
    names = re.findall(r"/(?:blob|raw)/HEAD/([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert names
    assert [name for name in names if name not in manifest and name.split("/")[0] not in manifest] == []


@pytest.mark.parametrize(
    ("more", "less", "message"),
    [
        ("example_apps/metrics.db", "", "expected s.tar.gz to have only files of the checkout, got example_apps/metrics.db"),
        ("", "docs/architecture.md", "expected s.tar.gz to have docs/architecture.md"),
    ],
)
def test_the_files_of_the_source_distribution_are_compared(more: str, less: str, message: str, tmp_path: Path) -> None:
    """`make wheel` refuses one that has a file that git ignores, such as a storage, or that lacks a file of the checkout."""
    if not (ROOT / ".git").exists() and more:  # only git knows what does not belong there
        more, less, message = "", "docs/architecture.md", "expected s.tar.gz to have docs/architecture.md"
    listed = wheel_smoke.checkout() or {*wheel_smoke.SHIPPED}
    with tarfile.open(tmp_path / "s.tar.gz", "w") as archive:
        for name in (listed | {more}) - {less, ""}:
            archive.addfile(tarfile.TarInfo(f"pdc-3/{name}"))
    with pytest.raises(SystemExit, match=f"^{re.escape(message)}$"):
        wheel_smoke.expect_files(tmp_path / "s.tar.gz")


def test_the_source_distribution_has_what_its_tests_read() -> None:
    """The scripts and the settings of tools that begin with a dot are there, too, by their names."""
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").split()
    names = [path.relative_to(ROOT).as_posix() for path in (ROOT / ".ci").iterdir()]
    assert names
    assert [name for name in names if name not in manifest] == []


@pytest.mark.parametrize(
    "name",
    ["prometheus_client", "redis", "flask", "django", "starlette", "fastapi", "celery", "rq", "dramatiq", "click", "rich"],
)
def test_the_oldest_version_that_is_tested_is_the_oldest_that_is_allowed(name: str) -> None:
    """The group `oldest` pins the lower bound of each requirement, give or take zeros at its end."""
    (bound,) = {match[1] for line in requirements() if (match := re.match(rf"{name}>=([\d.]+)", line))}
    tested = re.findall(rf'"{name}==([\d.]+)', PYPROJECT)[0]
    assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", tested)


def test_every_package_of_the_checkout_is_shipped_and_typed() -> None:
    """Each folder of code is named in pyproject.toml, and each import package has its py.typed."""
    files = [path for name in ("__init__.py", "*.html", "*.lua") for path in ROOT.glob(f"pdc*/**/{name}")]
    folders = {path.parent.relative_to(ROOT) for path in files}
    (named,) = re.findall(r"^packages = \[(.*?)\]$", PYPROJECT, re.MULTILINE | re.DOTALL)
    elsewhere = dict(re.findall(r'^(\w+) = "(pdc/\w+)"', PYPROJECT, re.MULTILINE))
    names = (elsewhere.get(name, name).replace("/", ".") for name in re.findall(r'"([^"]+)"', named))
    assert {".".join(folder.parts) for folder in folders} == set(names)
    assert [folder for folder in folders if len(folder.parts) == 1 and not (ROOT / folder / "py.typed").is_file()] == []


def test_every_data_file_of_a_package_is_shipped() -> None:
    """Files beside the code are named in pyproject.toml, by a pattern for their package."""
    patterns = dict(re.findall(r'^"([\w.*]+)" = \["([^"]+)"\]$', PYPROJECT.partition("package-data]")[2], re.MULTILINE))
    named = {path for name, pattern in patterns.items() for path in ROOT.glob(f"{name.replace('.', '/')}/{pattern}")}
    data = {path for path in ROOT.glob("pdc*/**/*.*") if path.suffix not in (".py", ".pyc")}
    assert ROOT / "pdc" / "storage" / "lua" / "apply.lua" in data
    assert data == named


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "pdc" / "storage" / "lua").iterdir()))
def test_every_script_of_redis_names_its_twin_in_sqlite(script: str) -> None:
    """The methods and functions that comments of a script call its twins are there."""
    text = re.sub(r"\n-- ?", " ", (ROOT / "pdc" / "storage" / "lua" / script).read_text(encoding="utf-8"))
    twins = " ".join(re.findall(r"Twins?: (.*?)(?=\. |\.?\n|, which)", text))
    assert twins
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "pdc" / "storage").rglob("*.py"))
    for owner, method in re.findall(r"\b([A-Z]\w+)\.(\w+)", twins):
        assert re.search(rf"^class {owner}\b(?:.*\n)+?    def {method}\(", code, re.MULTILINE), f"{owner}.{method}"
    for function, path in re.findall(r"\b(\w+) in (pdc/\S+\.(?:py|lua))", twins):
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), f"{function} in {path}"


def test_the_name_of_version_2_says_what_to_import(tmp_path: Path) -> None:
    """An import of version 2's name raises an ImportError that names `pdc` and the documentation."""
    (tmp_path / "prometheus_distributed_client").symlink_to(ROOT / "pdc" / "prometheus_distributed_client")
    for name in ("prometheus_distributed_client", "prometheus_distributed_client.redis"):
        command = [sys.executable, "-c", f"import {name}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        error = done.stderr.splitlines()[-1]
        assert error.startswith("ImportError: prometheus_distributed_client is called pdc since version 3: write `import pdc`")
        (page,) = re.findall(r"/blob/HEAD/(\S+\.md)", error)
        assert (ROOT / page).is_file()


@pytest.mark.parametrize("module", ["redis", "flask", "django", "starlette", "celery", "rq", "dramatiq", "click", "rich"])
def test_importing_pdc_imports_no_driver_and_no_framework(module: str, tmp_path: Path) -> None:
    """After `import pdc` neither a driver nor a framework is loaded."""
    source = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pdc; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", source], cwd=tmp_path, timeout=60, check=False).returncode == 0


def test_setup_of_redis_without_redis_py_names_the_extra(tmp_path: Path) -> None:
    """Where redis-py is not installed, setup(redis=...) raises an ImportError that names the extra."""
    source = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules["redis"] = None
import pdc
try:
    pdc.setup(redis="redis://localhost:6379/0")
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "pip install 'prometheus-distributed-client[redis]'" in done.stdout


EXTENSIONS = {
    **{name: f"pdc_{name}" for name in ("flask", "django", "starlette")},
    **{name: f"pdc.{name}" for name in ("celery", "rq", "dramatiq")},
}


@pytest.mark.parametrize("framework", EXTENSIONS)
def test_an_extension_without_its_framework_names_the_extra(framework: str, tmp_path: Path) -> None:
    """Where the framework is not installed, the import of its extension names the extra."""
    source = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules[{framework!r}] = None
try:
    import {EXTENSIONS[framework]}
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    expected = f"{EXTENSIONS[framework]} needs {framework}: pip install '{DISTRIBUTION}[{framework}]'"
    assert expected in done.stdout.lower()


def test_help_and_completion_show_all_of_the_public_interface() -> None:
    """`dir(pdc)` has exactly the public names, and `help(pdc)` has each of them."""
    assert [name for name in dir(pdc) if not name.startswith("_")] == sorted(pdc.__all__)
    text = pydoc.plain(pydoc.render_doc(pdc))
    assert [name for name in pdc.__all__ if not re.search(rf"\b{name}\b", text)] == []
    assert re.search(r"\n    start_http_server\(\s*port: '?int'?,\s+addr: '?str'? = '0\.0\.0\.0'", text)
    assert pdc.__version__ == metadata.version(DISTRIBUTION)


@pytest.mark.parametrize("module", [pdc, pdc.redis, pdc.sqlite])
def test_constructors_show_the_arguments_of_prometheus_client(module: Any) -> None:
    """A metric class has the public arguments of the class that it refines, and ours; a gauge shows its modes, too."""
    for name in pdc.redis.__all__:
        arguments = inspect.signature(getattr(prometheus_client, name).__init__).parameters
        theirs = [argument for argument in arguments if argument not in {"self", "_labelvalues"}]
        ours = inspect.signature(getattr(module, name)).parameters
        native = ["native"] if name == "Histogram" else []
        assert [*ours] == [*theirs, *native, "max_series", "expire_series"]
    modes = inspect.signature(module.Gauge).parameters["multiprocess_mode"].annotation
    assert {*get_args(modes)} == {*prometheus_client.Gauge._MULTIPROC_MODES, "shared"}


def test_a_constructor_of_the_user_shows_its_own_arguments() -> None:
    """A subclass has the signature of its own constructor."""

    class Timer(pdc.Summary):
        def __init__(self, name: str, *, unit: str = "seconds") -> None:
            super().__init__(name, "Time.", unit=unit, registry=None)

    assert [*inspect.signature(Timer).parameters] == ["name", "unit"]


def test_functions_that_take_options_show_them() -> None:
    """Functions that accept options as keywords show each with its default."""
    for function in (pdc.setup_from_environ, pdc_starlette.instrument, pdc_starlette.PrometheusMiddleware):
        shown = inspect.signature(function).parameters
        for option in dataclasses.fields(Options):
            assert shown[option.name].default == getattr(Options(), option.name)


def test_type_checkers_know_all_names() -> None:
    """An unknown name and a wrong mode are errors, also for mypy: otherwise `make lint` wants no ignore here."""
    with pytest.raises(AttributeError, match="module 'pdc' has no attribute 'nonsense'"):
        _ = pdc.nonsense  # type: ignore[attr-defined] # the tested name
    with pytest.raises(ValueError, match="Invalid multiprocess mode: none"):
        pdc.Gauge("g", "Help.", registry=None, multiprocess_mode="none")  # type: ignore[arg-type] # the tested mode


def test_the_readme_has_at_most_100_lines() -> None:
    """The README stays short."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_the_changelog_has_this_version() -> None:
    """The changelog has an entry for the version of pyproject.toml, or for what is unreleased."""
    (version,) = re.findall(r'^version = "([^"]+)"$', PYPROJECT, re.MULTILINE)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog if "dev" in version else f"## [{version}]" in changelog


def test_the_licence_is_the_full_text_of_the_gpl() -> None:
    """LICENSE is version 3 of the GNU General Public License, from its title to its last section."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_workflow_runs_what_the_makefile_has() -> None:
    """The workflow and `.ci/run` call targets of the Makefile; the tests run on each Python of the classifiers but 3.15."""
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"target: \[(.*)\]", workflow)
    called = {*re.findall(r"\bmake ([a-z-]+)", workflow + script), *re.findall(r"[a-z-]+", re.sub(r"\w+=\w+", "", matrix))}
    assert called <= targets
    needed = {"lint", "docs", "test", "check-versions", "long", "interrupt", "wheel", "demo", "prove", "check-pythons", "peers"}
    assert needed <= called
    (pythons,) = re.findall(r"python: \[(.*)\]", workflow)
    assert [*re.findall(r"3\.\d+", pythons), "3.15"] == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)


def test_each_ignore_of_mypy_has_its_reason() -> None:
    """Each `type: ignore` has its reason beside it."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    lines = [(path.name, line.strip()) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if re.search(r"# type: ignor[e](?!\[[a-z, -]+\] +# \w)", line[1])] == []
