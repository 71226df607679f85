"""`make release`: the version, the changelog, the commit and the tag; the checks and the wheel have tests of their own."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

MAKEFILE = "wheel:\n\tmkdir $(DIST) && grep '^version' pyproject.toml > $(DIST)/wheel\n"
"""In place of the one that builds and tries the wheel."""
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n### Added\n- A thing.\n\n## [3.0.0] - 2026-01-01\n- Others.\n"


def git(folder: Path, *arguments: str) -> str:
    """The output of git."""
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the script, and little else."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        for what in ("NAME", "EMAIL"):
            monkeypatch.setenv(f"GIT_{role}_{what}", "test")
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "release", tmp_path / ".ci" / "release")
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / "pyproject.toml").write_text('version = "3.1.0.dev0"\n')
    (tmp_path / ".gitignore").write_text("dist/\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "begin")
    return tmp_path


def release(checkout: Path, version: str, checks: str = "true") -> subprocess.CompletedProcess[str]:
    """Run the script with these checks."""
    environ = {**os.environ, "CHECKS": checks}
    return subprocess.run([".ci/release", version], cwd=checkout, env=environ, capture_output=True, text=True, check=False)


def test_a_release_is_committed_and_tagged(checkout: Path) -> None:
    """The checks and the wheel have the new version, the changelog has its date, and the commit is tagged."""
    done = release(checkout, "3.1.0", "grep -q 3.1.0 pyproject.toml")
    assert done.returncode == 0, done.stderr
    assert "3.1.0 is ready, with 1 lines in CHANGELOG.md" in done.stdout
    assert git(checkout, "log", "-1", "--format=%s", "v3.1.0") == "release: 3.1.0\n"
    assert git(checkout, "status", "--porcelain") == ""
    assert (checkout / "dist" / "wheel").read_text() == (checkout / "pyproject.toml").read_text() == 'version = "3.1.0"\n'
    expected = f"## [Unreleased]\n\n## [3.1.0] - {datetime.datetime.now().astimezone():%Y-%m-%d}\n\n### Added\n- A thing.\n"
    assert expected in (checkout / "CHANGELOG.md").read_text()


def test_a_failed_check_leaves_the_checkout_as_it_was(checkout: Path) -> None:
    """Where a check fails there is no commit, no tag and no change."""
    done = release(checkout, "3.1.0", "echo the check failed >&2; false")
    assert done.returncode != 0
    assert "the check failed" in done.stderr
    assert git(checkout, "status", "--porcelain") == git(checkout, "tag") == ""
    assert "dev0" in (checkout / "pyproject.toml").read_text()


def test_a_tag_that_cannot_be_leaves_no_commit(checkout: Path) -> None:
    """The last step fails as the first ones do: nothing has changed."""
    (checkout / ".git" / "refs" / "tags" / "v3.1.0" / "blocks").mkdir(parents=True)
    (checkout / ".git" / "refs" / "tags" / "v3.1.0" / "blocks" / "it").touch()
    assert release(checkout, "3.1.0").returncode != 0
    assert git(checkout, "log", "--format=%s") == "begin\n"
    assert git(checkout, "status", "--porcelain") == ""


@pytest.mark.parametrize(("checks", "changed"), [("echo >> Makefile", "M Makefile"), ("touch new", "?? new")])
def test_checks_that_change_files_make_no_release(checkout: Path, checks: str, changed: str) -> None:
    """The commit and the wheel would have what nobody looked at."""
    done = release(checkout, "3.1.0", checks)
    assert done.returncode == 1
    assert "expected checks that change no file, got" in done.stderr
    assert changed in done.stderr
    assert git(checkout, "log", "--format=%s") == "begin\n"


def test_a_committer_without_a_name_learns_it_before_the_checks(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks take most of an hour, and would be in vain."""
    monkeypatch.setenv("GIT_COMMITTER_NAME", "")
    done = release(checkout, "3.1.0", "echo checking")
    assert "expected a name and an address for the commit: git config user.name and user.email" in done.stderr
    assert "checking" not in done.stdout


def test_another_repository_around_the_folder_is_left_alone(checkout: Path) -> None:
    """A source distribution that was unpacked in a checkout of something else resets nothing there."""
    inner = checkout / "dist" / "unpacked"
    shutil.copytree(checkout / ".ci", inner / ".ci")
    done = release(inner, "3.1.0")
    assert (done.returncode, done.stderr) == (1, f"expected a checkout of git, got {inner}: clone the repository\n")


@pytest.mark.parametrize(
    ("version", "prepare", "message"),
    [
        ("", "true", "expected a version such as 3.1.0, got '': make release VERSION=3.1.0"),
        ("v3.1", "true", "expected a version such as 3.1.0, got 'v3.1': make release VERSION=3.1.0"),
        ("3.1.0", "touch new", "expected no changes since the last commit: commit or remove them"),
        ("3.1.0", "git tag v3.1.0", "expected a new version, got 3.1.0, which has a tag"),
        ("3.1.0", "git checkout -q --detach", "expected a branch, got a commit without one: git switch main"),
        ("3.0.0", "true", "expected 3.1.0 or later, as in pyproject.toml, got 3.0.0"),
        (
            "3.1.0",
            "git commit -q --allow-empty -m - && git branch -q new && git reset -q --hard HEAD~ && git branch -q -u new",
            "expected all commits of the upstream branch, 1 are missing: git pull",
        ),
        (
            "3.1.0",
            "sed -i /thing/d *.md && git commit -qam -",
            "expected changes in [Unreleased] of CHANGELOG.md, got none",
        ),
    ],
    ids=["no version", "no such form", "changes", "has a tag", "no branch", "too old", "behind", "nothing new"],
)
def test_a_release_that_cannot_be_is_refused(checkout: Path, version: str, prepare: str, message: str) -> None:
    """The message says what was expected, and nothing changes."""
    subprocess.run(["bash", "-c", prepare], cwd=checkout, check=True)
    before = git(checkout, "rev-parse", "HEAD")
    done = release(checkout, version)
    assert (done.returncode, done.stderr) == (1, message + "\n")
    assert git(checkout, "rev-parse", "HEAD") == before
