"""A small shop in Django. Run ``gunicorn app:app`` in this folder, where ``gunicorn.conf.py`` has the rest.

Metrics are in ``metrics.db``; set ``PDC_SQLITE_PATH`` or ``PDC_REDIS_URL`` for another place. Under ASGI it is the same:
``gunicorn -k uvicorn_worker.UvicornWorker app:asgi``.
"""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
app = get_wsgi_application()
asgi = get_asgi_application()
