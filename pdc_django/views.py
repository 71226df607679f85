"""The metrics page."""

from __future__ import annotations

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt

from pdc.exposition import scrape_from_wsgi
from pdc.http import TRACKER

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
    answer = http.answer(scrape_from_wsgi(request.META), request.headers.get("Authorization", ""))
    return HttpResponse(answer.body, status=answer.status, headers=answer.headers)


metrics.login_required = False  # type: ignore[attr-defined] # LoginRequiredMiddleware asks; PDC_METRICS_TOKEN is the guard
