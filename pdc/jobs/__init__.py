"""Metrics of programs that are no web applications: jobs that run and end."""

from .runs import Job, job

__all__ = ["Job", "job"]
