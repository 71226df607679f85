"""Prometheus metrics of a Django project, shared by all of its processes.

    INSTALLED_APPS += ["pdc_django"]
    MIDDLEWARE = ["pdc_django.middleware.PrometheusMiddleware", ...]  # first
    urlpatterns += [path("", include("pdc_django.urls"))]

Options are settings, or environment variables of the same name: the options of every framework, such as
``PDC_REDIS_URL`` (`pdc.options.Options` has them all), and five of Django alone. ``PDC_DJANGO_DATABASES`` (true unless
set) counts queries, ``PDC_DJANGO_CACHES`` counts cache operations, ``PDC_DJANGO_MODELS = ["shop", "auth.User"]`` counts
written rows of these models, ``PDC_DJANGO_MIGRATIONS`` shows how many migrations are applied, and
``PDC_DJANGO_READABLE_ROUTES`` shows regular expressions of routes as templates. ``manage.py check`` reports wrong settings.

Requests of a view that `exclude` decorates are not counted; for a class-based view it decorates the class or a method. `add`
adds a function that is called with the record of each request.
"""

try:
    import django  # noqa: F401 - without it, the error names the extra to install
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{__name__} needs Django: pip install 'prometheus-distributed-client[django]'") from error

from pdc.http import RequestRecord, exclude

from .conf import HOOKS

__all__ = ["RequestRecord", "add", "exclude"]

add = HOOKS.add
