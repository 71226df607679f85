"""The configuration that Gunicorn reads by itself in this folder."""

workers = 4
