"""The folder that `pdc run` puts first on PYTHONPATH: Python imports its `sitecustomize` as it starts."""
