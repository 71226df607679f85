"""The settings of the peer's test project, with `pdc_django` in place of the peer, and without servers that it needs."""

from testapp.settings import *  # noqa: F403 - settings are names of a module
from testapp.settings import CACHES, DATABASES, INSTALLED_APPS

INSTALLED_APPS = [name.replace("django_prometheus", "pdc_django") for name in INSTALLED_APPS]
DATABASES = {
    alias: {**database, "ENGINE": "django.db.backends.sqlite3"}
    for alias, database in DATABASES.items()
    if database["ENGINE"].endswith(".sqlite3")
}
CACHES = {
    alias: {**cache, "BACKEND": cache["BACKEND"].replace("django_prometheus.", "django.core.")}
    for alias, cache in CACHES.items()
    if alias in ("filebased", "locmem")
}
CACHES["default"] = CACHES["locmem"]

PDC_NAMES = "django-prometheus"
PDC_DJANGO_CACHES = True
PDC_DJANGO_MIGRATIONS = True
PDC_DJANGO_MODELS = ["testapp"]
