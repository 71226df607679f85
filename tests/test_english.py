"""The English of the code and the documents, as far as a test can hold it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from conftest import ROOT

FOLDERS = ("pdc", "pdc_*", "tests", "benchmarks", "docs", "example_apps", "monitoring")
PYTHON = [path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py")]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
COMMENTED = [
    ROOT / "Makefile",
    ROOT / "pyproject.toml",
    ROOT / ".ci" / "run",
    *ROOT.glob("pdc/**/*.lua"),
    *ROOT.glob("monitoring/**/*.yml"),
]

WORDS = "What|Whether|Who|Whose|Whom|That which"
OPENING = re.compile(
    rf"(?:\A|(?:#|--) |noqa: \S+ - )(?i:{WORDS})\s[\w`*(]"  # a text or a comment, which may begin with a small letter
    rf"|(?:[.!?][)\"'`*]*\s+|\n\s*\n\s*|\n\s*[-*] |\| )(?:{WORDS})\s[\w`*(]"  # a later sentence, a paragraph, an item, a cell
)


def comments(source: str) -> Iterator[tuple[int, str]]:
    """The comments with their lines; lines that follow each other are one comment."""
    first, last, text = 0, 0, ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, is_alone = token.start[0], token.line.lstrip().startswith("#")
        if is_alone and line == last + 1:
            text += "\n" + token.string.lstrip("# ")
        else:
            yield first, text
            first, text = line, token.string
        last = line if is_alone else 0
    yield first, text


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file with their lines: strings and comments of Python, a page without its blocks of code, or all."""
    source = path.read_text()
    if path.suffix == ".py":
        strings = (
            node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        yield from ((node.lineno, str(node.value)) for node in strings)
        yield from comments(source)
    else:
        yield 1, re.sub(r"(?ms)^ *```.*?^ *```", lambda block: "\n" * block[0].count("\n"), source)


def offenders(paths: Iterable[Path], root: Path = ROOT) -> list[str]:
    """The places of these files where a sentence begins with one of the words, and the words that follow."""
    found = []
    for path in sorted(paths):
        for first, text in texts(path):
            for match in OPENING.finditer(text):
                begin = match.end() - len(match[0].lstrip(".!?)\"'`*#-|\n "))
                line = first + text.count("\n", 0, begin)
                found.append(f"{path.relative_to(root)}:{line}: {' '.join(text[begin : begin + 60].split())}")
    return found


CODE = '''
"""~Who writes it.

~Whose it is.
"""
raise ValueError("It failed. ~What now?")  # noqa: TRY003 - ~what is tested
# It has two lines.
# ~Whom they serve, others know: whether they do, too.
'''
PAGE = """
Whatever it is, ask who knows it.

- ~That which is.

| a | ~Whether b |
|---|---|

```
What is code
```

## ~What is a title
"""


def test_the_search_finds_each_kind_of_sentence(tmp_path: Path) -> None:
    """It finds docstrings, messages, comments, paragraphs, items, cells and titles, but no clauses and no blocks of code."""
    found = []
    for name, text in (("code.py", CODE), ("page.md", PAGE)):
        path = tmp_path / name
        path.write_text(text.replace("~", ""))
        found += [place.split(":")[1] for place in offenders([path], tmp_path)]
    assert found == ["2", "4", "6", "6", "8", "4", "6", "13"]


def test_no_sentence_begins_with_a_question_word() -> None:
    """Sentences of code, comments and documents begin with their subject, not with What, Whether, Who or That which."""
    found = offenders([*PYTHON, *PAGES, *COMMENTED])
    assert not found, f"{len(found)} sentences, begin each with its subject:\n" + "\n".join(found)
