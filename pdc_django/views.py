"""The metrics page, and that of PDC_DASHBOARD."""

from __future__ import annotations

from collections.abc import Callable

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt

from pdc.exposition import Response, scrape_from_wsgi
from pdc.http import TRACKER, HTTPMetrics

from . import conf


@csrf_exempt
@never_cache
@transaction.non_atomic_requests
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer a scrape, which is not counted. Under ASGI Django runs this in a thread, like every view that is no coroutine."""
    return _answered(request, _page)


@csrf_exempt
@never_cache
@transaction.non_atomic_requests
def dashboard(request: HttpRequest) -> HttpResponse:
    """Answer a browser that asks for the page of PDC_DASHBOARD, which is not counted either."""
    return _answered(request, _browser_page)


def _answered(request: HttpRequest, page: Callable[[HttpRequest], HttpResponse]) -> HttpResponse:
    if (tracker := request.META.get(TRACKER)) is not None:
        tracker.forget()
    http = conf.http_metrics()
    if http is None:
        return HttpResponse("# PDC_ENABLED is false\n", "text/plain; charset=utf-8", status=404)
    answer: HttpResponse = http.decorated(page)(request)
    return answer


def _page(request: HttpRequest) -> HttpResponse:
    http: HTTPMetrics = conf.http_metrics()  # type: ignore[assignment]  # the view answers where it is None
    return _sent(http.answer(scrape_from_wsgi(request.META)))


def _browser_page(request: HttpRequest) -> HttpResponse:
    http: HTTPMetrics = conf.http_metrics()  # type: ignore[assignment]  # the same
    return _sent(http.answer_browser(scrape_from_wsgi(request.META)))


def _sent(answer: Response) -> HttpResponse:
    body, status, headers = answer
    return HttpResponse(body, status=status, headers=headers)


metrics.login_required = dashboard.login_required = False  # type: ignore[attr-defined] # LoginRequiredMiddleware asks; options such as PDC_METRICS_TOKEN guard
