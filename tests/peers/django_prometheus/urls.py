"""The page."""

from pdc_django.urls import urlpatterns

__all__ = ["urlpatterns"]
