"""System checks: each finds a wrong setting, and names the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.urls import NoReverseMatch, get_resolver, reverse

from . import conf

MIDDLEWARE = "pdc_django.middleware.PrometheusMiddleware"
INCLUDE = 'path("", include("pdc_django.urls"))'


class Rule(NamedTuple):
    """One possible mistake: `found` returns the wrong thing, or a false value."""

    kind: type[checks.Error] | type[checks.Warning]
    id: str
    message: str
    hint: str
    found: Callable[[], object]


def _options() -> object:
    try:
        conf.http_metrics()
    except conf.CONFIG_ERRORS as error:
        text = str(error)
        return text if text.endswith((".", "?")) else f"{text}."
    return None


def _middleware_position() -> object:
    middleware = list(settings.MIDDLEWARE)
    return middleware.index(MIDDLEWARE) + 1 if MIDDLEWARE in middleware[1:] and middleware[0] != MIDDLEWARE else None


def _middleware_times() -> object:
    times = list(settings.MIDDLEWARE).count(MIDDLEWARE)
    return times if times > 1 else None


def _unknown_models() -> object:
    known = {model._meta.label for model in apps.get_models(include_auto_created=True)}
    known.update(config.label for config in apps.get_app_configs())
    return ", ".join(sorted(set(conf.options().django_models) - known))


def _page_is_routed() -> bool:
    try:
        reverse("pdc_metrics")
    except NoReverseMatch:
        return False
    return True


def _urls_are_included() -> bool:
    modules = (getattr(resolver, "urlconf_name", None) for resolver in get_resolver().url_patterns)
    return any(getattr(module, "__name__", module) == "pdc_django.urls" for module in modules)


OPTIONS = Rule(
    checks.Error,
    "pdc_django.E001",
    "The settings of pdc are wrong: {}",
    "Correct the setting, or the environment variable of the same name.",
    _options,
)
RULES = (
    Rule(
        checks.Error,
        "pdc_django.E002",
        "PDC_DJANGO_MODELS has labels that are not installed: {}.",
        "Write labels as they are in INSTALLED_APPS' apps, such as 'shop' or 'shop.Order'.",
        _unknown_models,
    ),
    Rule(
        checks.Error,
        "pdc_django.E003",
        f"MIDDLEWARE has {MIDDLEWARE} {{}} times: each counts every request.",
        "Keep the first one only.",
        _middleware_times,
    ),
    Rule(
        checks.Warning,
        "pdc_django.W001",
        f"MIDDLEWARE does not have {MIDDLEWARE}: no request is counted.",
        f"Add {MIDDLEWARE!r} as its first item, or set PDC_ENABLED = False.",
        lambda: MIDDLEWARE not in settings.MIDDLEWARE,
    ),
    Rule(
        checks.Warning,
        "pdc_django.W002",
        f"{MIDDLEWARE} is number {{}} in MIDDLEWARE: the middlewares before it are neither counted nor timed.",
        "Make it the first.",
        _middleware_position,
    ),
    Rule(
        checks.Warning,
        "pdc_django.W003",
        "PDC_METRICS_PATH is {!r}, but no URLconf includes pdc_django.urls: there is no metrics page.",
        f"Add {INCLUDE} to the URLconf, or set PDC_METRICS_PATH = None where metrics are served elsewhere.",
        lambda: None if _page_is_routed() else conf.options().metrics_path,
    ),
    Rule(
        checks.Warning,
        "pdc_django.W004",
        "A URLconf includes pdc_django.urls, but PDC_METRICS_PATH is None: there is no metrics page.",
        f"Set PDC_METRICS_PATH, or remove {INCLUDE}.",
        lambda: conf.options().metrics_path is None and _urls_are_included(),
    ),
)


def check(**_: Any) -> list[checks.CheckMessage]:
    """Return the mistakes. All rules but the first need valid options, and matter where pdc is enabled."""
    if wrong := list(_messages((OPTIONS,))):
        return wrong
    return list(_messages(RULES)) if conf.options().enabled else []


def _messages(rules: tuple[Rule, ...]) -> list[checks.CheckMessage]:
    results = [(rule, rule.found()) for rule in rules]
    return [rule.kind(rule.message.format(found), hint=rule.hint, id=rule.id) for rule, found in results if found]
