"""The same application in the framework that FRAMEWORK names, which Gunicorn serves as `monitored:app`."""

from __future__ import annotations

import os
from typing import Any

from pdc import family
from pdc.delivery import flusher

flusher.BEAT_SECONDS, family.LEASE_SECONDS = 0.1, 0.5
OPTIONS: dict[str, Any] = {"PDC_PROCESS_METRICS": True, "PDC_FLUSH_INTERVAL": float(os.environ["INTERVAL"])}


def flask() -> Any:
    """In Flask."""
    from flask import Flask

    from pdc_flask import PrometheusMetrics

    app = Flask(__name__)
    app.config.update(OPTIONS)
    PrometheusMetrics(app)
    return app


def django() -> Any:
    """In Django."""
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application

    settings.configure(
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["pdc_django"],
        MIDDLEWARE=["pdc_django.middleware.PrometheusMiddleware"],
        ROOT_URLCONF="pdc_django.urls",
        **OPTIONS,
    )
    django.setup()
    return get_wsgi_application()


def fastapi() -> Any:
    """In FastAPI."""
    from fastapi import FastAPI

    from pdc_starlette import instrument

    app = FastAPI()
    instrument(app, **{name.removeprefix("PDC_").lower(): value for name, value in OPTIONS.items()})
    return app


app = globals()[os.environ["FRAMEWORK"]]()
