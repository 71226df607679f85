"""In place of django_prometheus: its names, by `pdc_django`."""
