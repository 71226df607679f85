"""Builds the source distribution and the wheel, and tries the wheel outside the checkout.

    python tests/wheel_smoke.py [--pythons python3.12 /opt/python3.14t ...]

The wheel is built from the source distribution. Each interpreter, this one unless others are named, tries it in two new
environments, in an empty folder: with the newest dependencies, and with those of the group `oldest` in pyproject.toml. An
interpreter without `venv` gets a folder of packages from the pip of this one. It exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from check_pythons import ABOUT, ROOT, output, pyproject, tested_extras

DISTRIBUTION = "prometheus-distributed-client"
SHIPPED = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "docs/architecture.md",
    "docs/images/dashboard-light.png",
    "pdc/storage/lua/apply.lua",
    "tests/conftest.py",
)
"""Files that the source distribution must have."""


def expect_installed(module: ModuleType) -> None:
    """Assert that the module is of the installed wheel, with its types."""
    path = Path(str(module.__file__))
    assert not path.is_relative_to(ROOT), f"expected the installed package, got {path}"
    assert path.with_name("py.typed").is_file(), f"expected py.typed beside {path}"


def check_write() -> None:
    """Without extras: SQLite counts, and Redis names its extra."""
    import pdc

    expect_installed(pdc)
    for data in (Path("storage", "lua"), Path("dashboard", "browser")):
        folders = (root / data for root in (ROOT / "pdc", Path(pdc.__file__).parent))
        expected, found_files = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
        assert found_files == expected, f"expected the files {[*expected]} in {data}, got {[*found_files]}, or others"
    found = "no error"
    try:
        pdc.setup(redis="redis://localhost:6379/0")
    except ImportError as error:
        found = str(error)
    assert f"{DISTRIBUTION}[redis]" in found, f"expected an ImportError that names the extra, got {found}"
    found = "no error"
    try:
        importlib.import_module("prometheus_distributed_client")
    except ImportError as error:
        found = str(error)
    assert "import pdc" in found, f"expected the name of version 2 to give the new one, got {found}"
    done = subprocess.run([sys.executable, "-m", "pdc"], capture_output=True, text=True, check=False)
    assert f"{DISTRIBUTION}[cli]" in done.stderr, f"expected `python -m pdc` to name the extra, got {done.stderr!r}"
    pdc.setup(sqlite="metrics.db")
    pdc.Counter("smoke", "Written by one process.", ["by"]).labels("wheel").inc(3)


def check_commands() -> None:
    """With the extra `cli`: the command `pdc` shows that count, and runs a program whose metrics it shows."""
    pdc, expected = [sys.executable, "-m", "pdc"], ["smoke\tcounter\t1\t3\t"]
    if sys.prefix != sys.base_prefix:  # an interpreter that has no environments does not load `sitecustomize` either
        source = "import prometheus_client; prometheus_client.Counter('ran', 'Of a program.').inc(2)"
        subprocess.run([*pdc, "run", "--", sys.executable, "-c", source], check=True)
        expected.append("ran\tcounter\t1\t2\t")
    shown = subprocess.run([*pdc, "show"], capture_output=True, text=True, check=True).stdout
    for row in expected:
        assert row in shown, f"expected the counts of other processes, got {shown!r}"


def check_read() -> None:
    """Another process reads the count of the first one."""
    import pdc

    pdc.setup(sqlite="metrics.db")
    text = pdc.generate_latest().decode()
    assert 'smoke_total{by="wheel"} 3.0' in text, f"expected the count of the other process, got {text!r}"


def expect_count(text: str) -> None:
    """Assert that the page has the one request."""
    expected = 'http_requests_total{method="GET",route="/hello",status="200"} 1.0'
    assert expected in text, f"expected {expected}, got {text!r}"


def check_flask() -> None:
    """With the extra `flask`: an application counts a request, and serves it."""
    import flask

    import pdc_flask

    expect_installed(pdc_flask)
    app = flask.Flask(__name__)
    app.config.update(PDC_SQLITE_PATH="flask.db", PDC_DASHBOARD=True)
    app.add_url_rule("/hello", view_func=lambda: "hello")
    pdc_flask.PrometheusMetrics(app)
    client = app.test_client()
    client.get("/hello").close()
    expect_count(client.get("/metrics").text)
    page = client.get("/metrics/dashboard").text
    assert "<title>Metrics, live</title>" in page, f"expected the page of PDC_DASHBOARD, got {page!r}"


def check_django() -> None:
    """With the extra `django`: the same."""
    import django
    from django.conf import settings
    from django.http import HttpResponse
    from django.test import Client
    from django.urls import include, path

    import pdc_django

    expect_installed(pdc_django)
    settings.configure(
        ALLOWED_HOSTS=["testserver"],
        INSTALLED_APPS=["pdc_django"],
        MIDDLEWARE=["pdc_django.middleware.PrometheusMiddleware"],
        PDC_SQLITE_PATH="django.db",
    )
    django.setup()
    settings.ROOT_URLCONF = path("hello", lambda _: HttpResponse(b"hello")), path("", include("pdc_django.urls"))
    client = Client()
    client.get("/hello")
    expect_count(client.get("/metrics").content.decode())


def check_starlette() -> None:
    """With the extra `starlette`: the same."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    import pdc_starlette

    expect_installed(pdc_starlette)
    app = Starlette()

    async def hello(_: Request) -> Response:
        return Response("hello")

    async def get(path: str) -> str:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "query_string": b"", "headers": []}
        await app(scope, receive, send)
        return b"".join(message.get("body", b"") for message in sent).decode()

    async def requests() -> str:
        await get("/hello")
        return await get("/metrics")

    app.add_route("/hello", hello)
    pdc_starlette.instrument(app, sqlite_path="starlette.db")
    expect_count(asyncio.run(requests()))


PLAIN = {"write": check_write, "read": check_read}
WITH_EXTRAS = {"commands": check_commands, "flask": check_flask, "django": check_django, "starlette": check_starlette}
CHECKS = PLAIN | WITH_EXTRAS


class Environment:
    """An interpreter with packages of its own: it has none before the first `install`."""

    def __init__(self, python: str, folder: Path) -> None:
        self.folder = folder
        self.inside = [python]
        self.variables: dict[str, str] = {}
        if subprocess.run([python, "-m", "venv", "--clear", str(folder)], capture_output=True, check=False).returncode == 0:
            self.inside = [str(folder / "bin" / "python")]
            self.pip = [*self.inside, "-m", "pip", "install"]
        else:
            self.variables["PYTHONPATH"] = str(folder)
            self.pip = [*_pip_of_this_python(python), "--target", str(folder), "--upgrade"]

    def install(self, *requirements: str) -> None:
        """Install these requirements of pip."""
        run([*self.pip, "--quiet", "--disable-pip-version-check", *requirements])

    def run(self, *arguments: str, folder: Path = ROOT) -> None:
        """Run Python with these arguments in the folder; exit if it fails."""
        run([*self.inside, *arguments], folder, self.variables)


def _pip_of_this_python(python: str) -> list[str]:
    """The start of a command by which the pip of this interpreter installs wheels for the other one."""
    version = output(python, "-c", ABOUT)
    minor = _minor(version)
    own = f"cp{minor.replace('.', '')}{'t' if version.endswith('t') else ''}"
    abis = [argument for abi in (own, "abi3", "none") for argument in ("--abi", abi)]
    return [sys.executable, "-m", "pip", "install", "--only-binary", ":all:", "--python-version", minor, *abis]


def _minor(version: str) -> str:
    """The version without its last number."""
    return ".".join(version.split(".")[:2])


def run(command: list[str], folder: Path = ROOT, variables: dict[str, str] | None = None) -> None:
    """Run a command without the paths of this process; exit if it fails."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if subprocess.run(command, cwd=folder, env=clean | (variables or {}), check=False).returncode:
        sys.exit(f"failed: {' '.join(command)}")


def build(builder: Environment, folder: Path) -> Path:
    """Build both distributions, look into the source distribution, and return the wheel."""
    builder.install("build", "twine")
    builder.run("-m", "build", "--outdir", str(folder), str(ROOT))
    builder.run("-m", "twine", "check", "--strict", *map(str, folder.iterdir()))
    found = [sorted(folder.glob(pattern)) for pattern in ("*.tar.gz", "*.whl")]
    if [*map(len, found)] != [1, 1]:
        sys.exit(
            f"expected one version in {folder}, got {', '.join(path.name for path in [*found[0], *found[1]])}: remove others"
        )
    expect_files(found[0][0])
    return found[1][0]


def checkout() -> set[str]:
    """The files that the source distribution should have; empty where no git knows them."""
    if not (ROOT / ".git").exists():
        return set()
    listed = output("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return {name for name in listed.split("\0") if (ROOT / name).is_file()} - {".gitignore"}


def expect_files(source: Path) -> None:
    """Exit unless the source distribution has the files of the checkout, and none that git ignores, such as a storage."""
    with tarfile.open(source) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    expected = checkout()
    foreign = {name for name in names - expected if name not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in name}
    if expected and foreign:
        sys.exit(f"expected {source.name} to have only files of the checkout, got {', '.join(sorted(foreign))}")
    if missing := (expected | {*SHIPPED}) - names:
        sys.exit(f"expected {source.name} to have {', '.join(sorted(missing))}")


ONES_THAT_APPLY = """
import sys
from packaging.requirements import Requirement
for requirement in map(Requirement, sys.argv[2:]):
    if requirement.marker is None or requirement.marker.evaluate({"python_version": sys.argv[1]}):
        print(f"{requirement.name}{requirement.specifier}")
"""
"""Prints the requirements whose markers hold for a version of Python; `build` brings the package `packaging`."""


def oldest(builder: Environment, minor: str) -> str:
    """The lower bounds of the dependencies for this version of Python, as the lines of a file of constraints."""
    group = pyproject()["dependency-groups"]["oldest"]
    return output(*builder.inside, "-c", ONES_THAT_APPLY, minor, *(line for line in group if isinstance(line, str)))


def try_wheel(builder: Environment, wheel: Path, python: str, scratch: Path) -> None:
    """Run all checks with the interpreter, once with the newest and once with the oldest versions."""
    version = output(python, "-c", ABOUT)
    brought = ",".join(tested_extras(free_threaded=version.endswith("t")))
    for name, constraints in {"newest": "", "oldest": oldest(builder, _minor(version))}.items():
        folder = scratch / f"{version}-{name}"
        (elsewhere := folder / "elsewhere").mkdir(parents=True)
        (folder / "constraints.txt").write_text(constraints)
        tried = Environment(python, folder / "packages")
        for requirement, checks in {str(wheel): PLAIN, f"{DISTRIBUTION}[{brought}] @ {wheel.as_uri()}": WITH_EXTRAS}.items():
            tried.install(requirement, "--constraint", str(folder / "constraints.txt"))
            for check, function in checks.items():
                tried.run("-W", "error", __file__, check, folder=elsewhere)
                print(f"Python {version}, {name} versions: {check}: {function.__doc__}", flush=True)


def main() -> None:
    """Build, and run the checks with each interpreter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", nargs="?", choices=CHECKS, help="run only this check, with the packages of this interpreter")
    parser.add_argument("--pythons", nargs="+", default=[sys.executable], help="commands or paths")
    parser.add_argument("--keep", type=Path, help="a folder, empty or new, for both distributions")
    options = parser.parse_args()
    if options.check:
        CHECKS[options.check]()
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        builder = Environment(sys.executable, scratch / "build")
        wheel = build(builder, options.keep or scratch / "dist")
        for python in options.pythons:
            try_wheel(builder, wheel, python, scratch)


if __name__ == "__main__":
    main()
