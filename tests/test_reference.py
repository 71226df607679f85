"""docs/reference.md: its tables match the code."""

from __future__ import annotations

from dataclasses import Field, fields
from importlib import import_module
from typing import Any

import pytest
from conftest import ROOT

from pdc.options import Options
from pdc_django.conf import DjangoOptions

REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
SHARED = {option.name for option in fields(Options)}
PUBLIC = (
    *("pdc", "pdc.redis", "pdc.sqlite", "pdc.celery", "pdc.options", "pdc.testing", "pdc.fixtures"),
    *("pdc.storage", "pdc.storage.fields"),
    *("pdc_flask", "pdc_django", "pdc_django.testing", "pdc_starlette"),
)


def default(value: object) -> str:
    """The default in the form of an environment variable; empty for an empty one."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    values = value if isinstance(value, tuple) else () if value in (None, "", {}) else (value,)
    text = ", ".join(f"{each:.10g}" if isinstance(each, float) else str(each) for each in values)
    return f"`{text}`" if text else ""


def row(option: Field[Any]) -> str:
    """The line of an option."""
    about = option.metadata["option"]
    cells = f"`PDC_{option.name.upper()}`", default(getattr(DjangoOptions(), option.name)), about.help, about.allowed
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("of_django", [False, True])
def test_the_reference_has_all_options(of_django: bool) -> None:
    """Each option has its row: name, default, meaning and allowed values, as in its declaration."""
    chosen = [option for option in fields(DjangoOptions) if (option.name not in SHARED) == of_django]
    table = "\n".join(["| Option | Default | Meaning | Allowed |", "|---|---|---|---|", *map(row, chosen)])
    assert f"\n\n{table}\n\n" in REFERENCE, f"expected docs/reference.md to have\n{table}"


def test_the_reference_has_all_that_is_public() -> None:
    """Each public module has its row with the names of its `__all__`."""
    rows = (f"| `{name}` | {', '.join(f'`{each}`' for each in import_module(name).__all__)} |" for name in PUBLIC)
    table = "\n".join(["| Module | Names |", "|---|---|", *rows])
    assert f"\n\n{table}\n\n" in REFERENCE, f"expected docs/reference.md to have\n{table}"


@pytest.mark.parametrize("option", fields(DjangoOptions), ids=lambda option: option.name)
def test_an_option_is_explained_in_a_sentence(option: Field[Any]) -> None:
    """The meaning of an option is a sentence that begins with a capital, ends with a full stop, and fits a table."""
    meaning = option.metadata["option"].help
    assert meaning[0].isupper()
    assert meaning.endswith(".")
    assert "|" not in meaning + option.metadata["option"].allowed
    assert len(meaning) < 120
