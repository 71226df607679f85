"""Plain metrics of an application, as servers of language models have them. Nothing here knows of pdc."""

from __future__ import annotations

import os

import prometheus_client


class Tokens(prometheus_client.Counter):
    """A metric with a constructor and a method of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "Tokens.", labelnames=["model", "kind"])

    def add(self, model: str, prompt: int, completion: int) -> None:
        """Count the tokens of a request."""
        self.labels(model=model, kind="prompt").inc(prompt)
        self.labels(model=model, kind="completion").inc(completion)


TOKENS = Tokens("llm_tokens")
RUNNING = prometheus_client.Gauge("llm_requests_running", "Running.", ["engine"], multiprocess_mode="livesum")
LATENCY = prometheus_client.Histogram("llm_latency_seconds", "Latency.", buckets=[0.1, 1, 10])
prometheus_client.Info("llm_config", "Configuration.").info({"block_size": "16"})


def serve() -> str:
    """Answer a request, and return the id of the process."""
    with RUNNING.labels("0").track_inprogress(), LATENCY.time():
        TOKENS.add("small", 3, 5)
    return str(os.getpid())
