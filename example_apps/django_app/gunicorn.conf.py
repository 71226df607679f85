"""What Gunicorn reads by itself where it is run in this folder."""

workers = 4
worker_class = "gthread"
threads = 2
