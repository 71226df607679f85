"""The package as a whole: what it says of itself, what it ships, what it imports."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

DISTRIBUTION = "prometheus-distributed-client"
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def requirements() -> set[str]:
    """What the distribution requires, with the extra that each requirement belongs to."""
    return {re.sub(r"\s|'|\"", "", requirement) for requirement in metadata.requires(DISTRIBUTION) or []}


def test_the_metadata_of_the_installed_distribution_is_that_of_the_checkout() -> None:
    """The version, the name of the licence and the oldest Python of the metadata are those of pyproject.toml."""
    about = metadata.metadata(DISTRIBUTION)
    assert f'version = "{about["Version"]}"' in PYPROJECT
    assert f'license = "{about["License-Expression"]}"' in PYPROJECT
    assert f'requires-python = "{about["Requires-Python"]}"' in PYPROJECT


def test_a_plain_install_brings_no_driver_and_no_framework() -> None:
    """Without extras only prometheus_client is required; there is one extra for each driver and framework, and all."""
    assert {requirement for requirement in requirements() if "extra==" not in requirement} == {"prometheus_client>=0.23.1"}
    extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra")
    assert set(extras or ()) == {"redis", "flask", "django", "starlette", "all"}


@pytest.mark.parametrize("name", ["prometheus_client", "redis", "flask", "django", "starlette"])
def test_the_oldest_version_that_is_tested_is_the_oldest_that_is_allowed(name: str) -> None:
    """The group `oldest` pins the lower bound of each requirement, give or take zeros at its end."""
    (bound,) = {match[1] for line in requirements() if (match := re.match(rf"{name}>=([\d.]+)", line))}
    (tested,) = re.findall(rf'"{name}==([\d.]+)"', PYPROJECT)
    assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", tested)


def test_every_package_of_the_checkout_is_shipped_and_typed() -> None:
    """Each folder of code is named in pyproject.toml, and each import package has its py.typed."""
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("pdc*/**/__init__.py")}
    (named,) = re.findall(r"^packages = \[(.*)\]$", PYPROJECT, re.MULTILINE)
    assert {".".join(folder.parts) for folder in folders} == set(re.findall(r'"([^"]+)"', named))
    assert [folder for folder in folders if len(folder.parts) == 1 and not (ROOT / folder / "py.typed").is_file()] == []


@pytest.mark.parametrize("module", ["redis", "flask", "django", "starlette"])
def test_importing_pdc_imports_no_driver_and_no_framework(module: str, tmp_path: Path) -> None:
    """After `import pdc` neither a driver nor a framework is loaded."""
    source = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pdc; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", source], cwd=tmp_path, timeout=60, check=False).returncode == 0


def test_setup_of_redis_without_redis_py_names_the_extra(tmp_path: Path) -> None:
    """Where redis-py is not installed, setup(redis=...) raises an ImportError that says what to install."""
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


def test_the_readme_has_at_most_100_lines() -> None:
    """The README stays short."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_the_changelog_tells_of_this_version() -> None:
    """The changelog has an entry for the version of pyproject.toml, or for what is unreleased."""
    (version,) = re.findall(r'^version = "([^"]+)"$', PYPROJECT, re.MULTILINE)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog if "dev" in version else f"## [{version}]" in changelog


def test_the_licence_is_the_full_text_of_the_gpl() -> None:
    """LICENSE is version 3 of the GNU General Public License, from its title to its last section."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007" in text
    assert "END OF TERMS AND CONDITIONS" in text
