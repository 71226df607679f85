"""docs/reference.md: its tables match the code."""

from __future__ import annotations

import inspect
import re
from dataclasses import Field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, free_port
from helpers import block, run_block

import pdc
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


def test_the_reference_explains_all_calls_of_pdc(tmp_path: Path) -> None:
    """Its program serves its metrics, its table has the calls and classes of `pdc`, and all arguments of `setup`."""
    port = free_port()
    source = block(REFERENCE, "python", of="Programs without an extension").replace("9100", str(port))
    ask = f"import urllib.request\nprint(urllib.request.urlopen('http://127.0.0.1:{port}').read().decode())"
    assert 'visits_total{page="/"} 1.0' in run_block(f"{source}{ask}", tmp_path)
    table = REFERENCE.partition("## Programs without an extension\n")[2].partition("\n## ")[0]
    calls = {
        name for name in pdc.__all__ if callable(getattr(pdc, name)) and not name.endswith(("Error", "Configured", "Metrics"))
    }
    assert calls == set(re.findall(r"`(\w+)(?:\(.*?\))?`(?=,| \|)", "\n".join(re.findall(r"^\| .*? \|", table, re.MULTILINE))))
    assert [name for name in inspect.signature(pdc.setup).parameters if f"`{name}`" not in table] == []


@pytest.mark.parametrize("option", fields(DjangoOptions), ids=lambda option: option.name)
def test_an_option_is_explained_in_a_sentence(option: Field[Any]) -> None:
    """The meaning of an option is a sentence that begins with a capital, ends with a full stop, and fits a table."""
    meaning = option.metadata["option"].help
    assert meaning[0].isupper()
    assert meaning.endswith(".")
    assert "|" not in meaning + option.metadata["option"].allowed
    assert len(meaning) < 120
