"""What Gunicorn reads by itself where it is run in this folder."""

from pdc.gunicorn import *  # noqa: F403 - hooks that send what is pending before a worker ends

workers = 4
worker_class = "uvicorn_worker.UvicornWorker"
