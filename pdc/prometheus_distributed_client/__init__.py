"""The import name of version 2: names the module to import now. It is shipped beside `pdc`, under its own name."""

raise ImportError(
    "prometheus_distributed_client is called pdc since version 3: write `import pdc`, or `from pdc.redis import Counter` and "
    "`from pdc.sqlite import Counter`. Its data is taken over: see "
    "https://github.com/dolead/prometheus-distributed-client/blob/HEAD/docs/upgrading.md. "
    "To stay with version 2, install 'prometheus-distributed-client<3'."
)
