"""Runs the tests of peers against pdc: `make peers`.

An adapter in `tests/peers/` has the import name of the peer, and does all by pdc. The tests themselves are not in this
repository: they come from the source distribution of the peer where that has them, otherwise from its public repository, at
one version. `--sources DIR` takes them from the folders of that name in DIR instead. `tests/peers/differences/` lists the
tests that fail for a reason: one that passes is an error, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PEERS_FOLDER = ROOT / "tests" / "peers"


class Peer(NamedTuple):
    """A peer, and the place of its tests."""

    name: str
    version: str
    """The version on PyPI, or the revision of the repository."""
    repository: str = ""
    """Empty where the source distribution has the tests."""
    tests: str = "tests"
    settings: str = ""
    """The settings of its project of Django."""


PEERS = (
    Peer("starlette-exporter", "0.24.0"),
    Peer("prometheus-flask-exporter", "0.23.2"),
    Peer("prometheus-fastapi-instrumentator", "v8.0.2", "https://github.com/trallnag/prometheus-fastapi-instrumentator"),
    Peer(
        "django-prometheus",
        "ea2afd74b3f1200636686525b7d7a86fa11ee504",
        "https://github.com/korfuri/django-prometheus",
        "django_prometheus/tests/end2end",
        "django_prometheus.settings",
    ),
)


def fetch(peer: Peer, folder: Path) -> Path:
    """Bring the sources of the peer into the folder, and return their place. Raises CalledProcessError."""
    if peer.repository:
        git = ["git", "-C", str(folder)]
        subprocess.run([*git, "init", "--quiet"], check=True)
        subprocess.run([*git, "fetch", "--quiet", "--depth=1", peer.repository, peer.version], check=True)
        subprocess.run([*git, "checkout", "--quiet", "FETCH_HEAD"], check=True)
        return folder
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--no-binary={peer.name}", f"--dest={folder}"]
    subprocess.run([*pip, f"{peer.name}=={peer.version}"], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    (unpacked,) = (each for each in folder.iterdir() if each.is_dir())
    return unpacked


def run(peer: Peer, sources: Path, suite: Path, differences: Path) -> bool:
    """Run the tests in the folder `suite`, which has nothing else of the peer; return True if all is as expected."""
    shutil.copytree(sources / peer.tests, suite / "tests")
    if (missing := PEERS_FOLDER / "suites" / peer.name).is_dir():  # files that the source distribution lacks
        shutil.copytree(missing, suite, dirs_exist_ok=True)
    paths = [PEERS_FOLDER, ROOT, suite / "tests"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PDC_", "DJANGO_"))}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
    if peer.settings:
        environment["DJANGO_SETTINGS_MODULE"] = peer.settings
    arguments = [f"--differences={differences}", f"--rootdir={suite}", f"--confcutdir={suite}", "tests"]
    pytest = [sys.executable, "-m", "pytest", "-c", str(PEERS_FOLDER / "pytest.ini"), *arguments]
    return subprocess.run(pytest, cwd=suite, env=environment, check=False).returncode == 0


def main() -> int:
    """Run the tests of the named peers, or of all. Returns 1 after anything unexpected, a peer without its tests among it."""
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(description="Run the tests of peers against pdc.")
    parser.add_argument("names", nargs="*", metavar="PEER", help=f"some of {', '.join(names)}; else all")
    parser.add_argument("--sources", type=Path, help="a folder with the sources of each peer, instead of the network")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    failed = []
    for peer in PEERS:
        if arguments.names and peer.name not in arguments.names:
            continue
        print(f"\n== {peer.name} {peer.version}", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                given = arguments.sources and arguments.sources / peer.name
                (folder := Path(scratch, "sources")).mkdir()
                sources = given or fetch(peer, folder)
            except subprocess.CalledProcessError:
                place = peer.repository or "PyPI"
                failed.append(f"{peer.name}: its tests cannot be fetched from {place}: name other peers, or give --sources")
                continue
            if not run(peer, sources, Path(scratch, "suite"), PEERS_FOLDER / "differences" / f"{peer.name}.txt"):
                failed.append(f"{peer.name}: not as expected")
    print("\n".join(["", *failed]) if failed else "\nall is as expected")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
