"""How the tests of peers run against adapters: `tests/peer_suites.py` and its plugin of pytest."""

from __future__ import annotations

from pathlib import Path

import pytest
from peer_suites import Peer, run

SUITE = """
import logging, pdc

def count():
    pdc.Counter("calls", "Calls.", registry=None).inc()
    return pdc.generate_latest()

def test_first():
    assert b"calls_total 1.0" in count()

def test_second():
    assert b"calls_total 1.0" in count()

def test_differs():
    assert False

def test_agrees():
    pass

def test_logs():
    logging.getLogger("pdc").warning("it failed", exc_info=ValueError("wrong"))
"""


@pytest.mark.long
def test_known_differences_are_as_they_are_listed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Tests have storages of their own. One that fails or logs an error is to be listed, one that agrees or is gone is not."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_suite.py").write_text(SUITE)
    (tmp_path / "tests" / "test_other.py").write_text("import a_part_of_the_peer")
    differences = tmp_path / "differences.txt"

    def run_with(*listed: str) -> tuple[bool, str]:
        tests = [f"tests/test_suite.py::test_{name}" for name in listed]
        differences.write_text("\n".join(["# A reason.", *tests, "# Another one.", "tests/test_other.py", ""]))
        passed = run(Peer("made-up", "1.0"), tmp_path, tmp_path / "-".join(listed), differences)
        return passed, "".join(capfd.readouterr())

    passed, output = run_with("differs", "logs")
    assert passed
    assert "XFAIL tests/test_suite.py::test_differs - A reason." in output
    assert "3 passed, 2 xfailed" in output
    passed, output = run_with("agrees")
    assert not passed
    assert "3 failed, 2 passed" in output
    assert all(f"FAILED tests/test_suite.py::test_{name}" in output for name in ("agrees", "differs", "logs"))
    assert "it failed: ValueError('wrong')" in output
    passed, output = run_with("differs", "gone")
    assert not passed
    assert "has tests that do not exist: ['tests/test_suite.py::test_gone']" in output
