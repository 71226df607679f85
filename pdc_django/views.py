"""The metrics page."""

from __future__ import annotations

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt

from pdc.exposition import scrape_from_wsgi
from pdc.http import TRACKER, HTTPMetrics

from . import conf


@csrf_exempt
@never_cache
@transaction.non_atomic_requests
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer a scrape, which is not counted. Under ASGI Django runs this in a thread, like every view that is no coroutine."""
    if (tracker := request.META.get(TRACKER)) is not None:
        tracker.forget()
    http = conf.http_metrics()
    if http is None:
        return HttpResponse("# PDC_ENABLED is false\n", "text/plain; charset=utf-8", status=404)
    answer: HttpResponse = http.decorated(_page)(request)
    return answer


def _page(request: HttpRequest) -> HttpResponse:
    http: HTTPMetrics = conf.http_metrics()  # type: ignore[assignment]  # the view answers where it is None
    body, status, headers = http.answer(scrape_from_wsgi(request.META))
    return HttpResponse(body, status=status, headers=headers)


metrics.login_required = False  # type: ignore[attr-defined] # LoginRequiredMiddleware asks; options such as PDC_METRICS_TOKEN guard
