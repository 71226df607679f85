"""The helper of the peer's tests, which its source distribution lacks."""

from __future__ import annotations

import re
import unittest
from importlib.metadata import version
from typing import Any

from flask import Flask
from prometheus_client.parser import text_string_to_metric_families
from prometheus_flask_exporter import PrometheusMetrics


class BaseTestCase(unittest.TestCase):
    """An application, and assertions about its page."""

    def setUp(self) -> None:
        """Make the application."""
        self.app = Flask(__name__)
        self.app.testing = True
        self.client = self.app.test_client()

    def metrics(self, **arguments: Any) -> PrometheusMetrics:
        """Instrument the application."""
        return PrometheusMetrics(self.app, **arguments)

    def _values(self, name: str, labels: tuple[tuple[str, object], ...], endpoint: str) -> list[float]:
        page = self.client.get(endpoint)
        assert page.status_code == 200
        expected = {label: str(value) for label, value in labels}
        samples = (sample for family in text_string_to_metric_families(page.text) for sample in family.samples)
        return [sample.value for sample in samples if sample.name == name and sample.labels == expected]

    def assertMetric(self, name: str, value: object, *labels: tuple[str, object], endpoint: str = "/metrics") -> None:  # noqa: N802 - the name of the peer
        """Assert that the sample is there, and that its value begins like this pattern."""
        found = self._values(name, labels, endpoint)
        assert any(re.match(str(value), str(each)) for each in found), f"{name}{labels} is {found}, not {value}"

    def assertAbsent(self, name: str, *labels: tuple[str, object], endpoint: str = "/metrics") -> None:  # noqa: N802 - the same
        """Assert that the sample is not there."""
        assert self._values(name, labels, endpoint) == []

    def assumeMinimumFlaskVersion(self, wanted: str) -> None:  # noqa: N802 - the same
        """Leave out a test of newer versions of Flask."""
        if _numbers(version("flask")) < _numbers(wanted):
            self.skipTest(f"it needs Flask {wanted}")

    def assumeBeforeFlaskVersion(self, wanted: str) -> None:  # noqa: N802 - the same
        """Leave out a test of older versions of Flask."""
        if _numbers(version("flask")) >= _numbers(wanted):
            self.skipTest(f"it needs Flask before {wanted}")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(".")[:2]]
