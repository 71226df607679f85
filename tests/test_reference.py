"""docs/reference.md: its tables match the code."""

from __future__ import annotations

from dataclasses import Field, fields
from importlib import import_module
from typing import Any

import pytest
from conftest import ROOT

from pdc.options import Options
from pdc.options.listing import as_markdown, listed
from pdc_django.conf import DjangoOptions

REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
PUBLIC = (
    *("pdc", "pdc.redis", "pdc.sqlite", "pdc.celery", "pdc.rq", "pdc.dramatiq", "pdc.options", "pdc.testing", "pdc.fixtures"),
    *("pdc.storage", "pdc.storage.fields"),
    *("pdc_flask", "pdc_django", "pdc_django.testing", "pdc_starlette"),
)


@pytest.mark.parametrize("of_django", [False, True])
def test_the_reference_has_all_options(of_django: bool) -> None:
    """Each option has its row: name, default, meaning and allowed values, as `pdc options` lists them."""
    shared = {row.name for row in listed(Options, {})}
    table = as_markdown(row for row in listed(DjangoOptions, {}) if (row.name not in shared) == of_django)
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
