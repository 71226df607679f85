"""Prometheus metrics of a Django project, shared by all of its processes."""
