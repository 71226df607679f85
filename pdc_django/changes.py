"""Counts what is written of the models that PDC_DJANGO_MODELS names, after each write."""

from __future__ import annotations

from functools import cache
from typing import Any

from django.db.models import Model
from django.db.models.signals import post_delete, post_save

from pdc import Counter

from . import conf


@cache
def _family(namespace: str) -> Counter:
    return Counter(
        "django_model_changes",
        "Objects that were inserted, updated or deleted; bulk operations send no signals and are not counted.",
        ["model", "operation"],
        namespace=namespace,
        registry=None,
    )


def connect() -> None:
    """Receive the signals of all models: which of them count is asked at every write, a test may change it."""
    post_save.connect(_saved)
    post_delete.connect(_deleted)


def _saved(*, sender: type[Model], created: bool, **_: Any) -> None:
    _count(sender, "insert" if created else "update")


def _deleted(*, sender: type[Model], **_: Any) -> None:
    _count(sender, "delete")


def _count(model: type[Model], operation: str) -> None:
    options = conf.active()
    if options is not None and {model._meta.label, model._meta.app_label} & set(options.django_models):
        with conf.harmless():
            _family(options.namespace).labels(model._meta.label, operation).inc()
