"""The configuration that Gunicorn reads by itself in this folder."""

workers = 4
worker_class = "uvicorn_worker.UvicornWorker"
