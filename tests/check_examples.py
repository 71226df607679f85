"""Checks the code that users copy, as their type checkers do: the example applications, and the Python of README and docs.

    python tests/check_examples.py

mypy and pyright must find nothing, and users need not annotate their functions as mypy's strict mode wants. It exits with 1
where one of the two finds something. A block has the name of the file that the line before it gives it, else that of its page.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`(?:\w+/)*(\w+\.py)`:$")
BEGINNINGS = {"settings.py": "INSTALLED_APPS: list[str] = []\nMIDDLEWARE: list[str] = []\n"}
"""The parts that files have already, whose ends are blocks."""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The blocks of Python of a page, each with the name of a file for it."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        before = text[: match.start()]
        named = NAMED.search(before.rstrip("\n"))
        yield named[1] if named else f"{page.stem.lower()}_line_{before.count(chr(10)) + 2}.py", match[1]


def write(folder: Path) -> list[Path]:
    """Write all blocks into the folder, and return their files."""
    files = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for name, source in blocks(page):
            path = folder / name
            if path in files:  # another page has a file of this name
                path = folder / f"{page.stem.lower()}_{name}"
            files.append(path)
            path.write_text(BEGINNINGS.get(name, "") + source, encoding="utf-8")
    return files


def main() -> int:
    """Check; return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        files = write(Path(name))
        config = {"include": [".", os.path.relpath(ROOT / "example_apps", name)], "extraPaths": [str(ROOT)]}
        Path(name, "pyrightconfig.json").write_text(json.dumps(config))
        commands = (
            ["mypy", "--config-file", "", "--check-untyped-defs", "--follow-imports", "silent", *map(str, files)],
            ["pyright", "--pythonpath", sys.executable, "--project", name],
        )
        codes = [subprocess.run([sys.executable, "-m", *each], cwd=ROOT, check=False).returncode for each in commands]
    print(f"{len(files)} blocks of README and docs, and example_apps, are checked")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
