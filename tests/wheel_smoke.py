"""Builds the source distribution and the wheel, and tries the wheel outside the checkout.

    python tests/wheel_smoke.py

Each check runs in an environment of its own, in an empty folder. It exits with 1 if one fails.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = "prometheus-distributed-client"
SHIPPED = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "docs/architecture.md",
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
    folders = (root / "pdc" / "storage" / "lua" for root in (ROOT, Path(pdc.__file__).parent.parent))
    expected, scripts = (sorted(path.name for path in folder.iterdir()) for folder in folders)
    assert scripts == expected, f"expected the scripts {expected}, got {scripts}"
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
    command = Path(sys.executable).with_name("pdc")
    source = "import prometheus_client; prometheus_client.Counter('ran', 'Of a program.').inc(2)"
    subprocess.run([command, "run", "--", sys.executable, "-c", source], check=True)
    shown = subprocess.run([command, "show"], capture_output=True, text=True, check=True).stdout
    for row in ("smoke\tcounter\t1\t3\t", "ran\tcounter\t1\t2\t"):
        assert row in shown, f"expected the counts of other processes, got {shown!r}"


def check_read() -> None:
    """Another process reads the count of the first one."""
    import pdc

    pdc.setup(sqlite="metrics.db")
    text = pdc.generate_latest().decode()
    assert 'smoke_total{by="wheel"} 3.0' in text, f"expected the count of the other process, got {text!r}"


def check_flask() -> None:
    """With the extra `flask`: an application counts a request, and serves it."""
    import flask

    import pdc_flask

    expect_installed(pdc_flask)
    app = flask.Flask(__name__)
    app.config["PDC_SQLITE_PATH"] = "flask.db"
    app.add_url_rule("/hello", view_func=lambda: "hello")
    pdc_flask.PrometheusMetrics(app)
    client = app.test_client()
    client.get("/hello").close()
    text = client.get("/metrics").text
    expected = 'http_requests_total{method="GET",route="/hello",status="200"} 1.0'
    assert expected in text, f"expected {expected}, got {text!r}"


CHECKS = {"write": check_write, "read": check_read, "commands": check_commands, "flask": check_flask}


def environment(folder: Path, *requirements: str) -> Path:
    """The interpreter of a new environment with these requirements."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", *requirements)
    return python


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Run a command without the paths of this process; exit if it fails."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if subprocess.run(list(map(str, command)), cwd=folder, env=clean, check=False).returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}")


def build(scratch: Path) -> Path:
    """Build both distributions, look into the source distribution, and return the wheel."""
    run(environment(scratch / "build", "build"), "-m", "build", "--outdir", scratch / "dist", ROOT)
    (source,) = (scratch / "dist").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in SHIPPED if name not in names]
    if missing:
        sys.exit(f"expected {source.name} to have {', '.join(missing)}")
    (wheel,) = (scratch / "dist").glob("*.whl")
    return wheel


def main() -> None:
    """Build, and run the checks."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        wheel = build(scratch)
        plain = environment(scratch / "plain", str(wheel))
        flask = environment(scratch / "flask", f"{DISTRIBUTION}[flask] @ {wheel.as_uri()}")
        commands = environment(scratch / "commands", f"{DISTRIBUTION}[cli] @ {wheel.as_uri()}")
        (elsewhere := scratch / "elsewhere").mkdir()
        for check, python in {"write": plain, "read": plain, "commands": commands, "flask": flask}.items():
            run(python, "-W", "error", __file__, check, folder=elsewhere)
            print(f"{check}: {CHECKS[check].__doc__}")


if __name__ == "__main__":
    CHECKS[sys.argv[1]]() if len(sys.argv) > 1 else main()
