"""Checks the code that users copy, as their type checkers do: the example applications, and the Python of README and docs.

    python tests/check_examples.py

mypy and pyright must find nothing, and users need not annotate their functions as mypy's strict mode wants. It exits with 1
where one of the two finds something; the name of a file is its page with the line of the block.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The blocks of Python of a page, each with the name of a module for it."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1)) + 1
        yield f"{page.stem.lower()}_line_{line}.py", match[1]


def write(folder: Path) -> list[Path]:
    """Write all blocks into the folder, and return their files."""
    files = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for name, source in blocks(page):
            files.append(folder / name)
            files[-1].write_text(source, encoding="utf-8")
    return files


def main() -> int:
    """Check; return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        files = write(Path(name))
        commands = (
            ["mypy", "--config-file", "", "--check-untyped-defs", "--follow-imports", "silent", *files],
            ["pyright", "--pythonpath", sys.executable, *files, ROOT / "example_apps"],
        )
        codes = [subprocess.run([sys.executable, "-m", *map(str, each)], cwd=ROOT, check=False).returncode for each in commands]
    print(f"{len(files)} blocks of README and docs, and example_apps, are checked")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
