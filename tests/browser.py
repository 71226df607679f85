"""Chromium without a window, driven by its DevTools protocol over a pipe, and a storage whose time a test sets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from pdc.exposition import read_storage
from pdc.storage import Snapshot, StorageError

NAMES = ("chromium", "google-chrome", "chromium-browser")
SILENT = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-sync"),
)


class Browser:
    """One page of a browser, and everything that happens in it."""

    def __init__(self, folder: Path) -> None:
        command = next((found for name in NAMES if (found := shutil.which(name))), None)
        assert command is not None, f"expected one of {', '.join(NAMES)}: `make long` installs it"
        theirs, self._to = os.pipe()
        self._from, back = os.pipe()
        flags = " ".join([*SILENT, "--remote-debugging-pipe", f"--user-data-dir={folder}"])
        line = f"exec {command} {flags} about:blank 3<&{theirs} 4>&{back}"
        self._process = subprocess.Popen(
            ["bash", "-c", line], pass_fds=(theirs, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(back)
        self._left = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """The events of the page so far, each with its `method` and its `params`."""
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._to)  # which ends the browser
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._from)

    def call(self, method: str, /, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            read = os.read(self._from, 1 << 20)
            assert read, "the browser has ended"
            self._left += read
        line, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def open(self, url: str) -> None:
        """Go to that address."""
        self.call("Page.navigate", url=url)

    def run(self, source: str) -> Any:
        """The value of an expression of JavaScript in the page, of a promise once it is resolved."""
        options = {"returnByValue": True, "awaitPromise": True, "allowUnsafeEvalBlockedByCSP": False}
        answer = self.call("Runtime.evaluate", expression=source, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """The text of the first element that the selector finds; empty where there is none."""
        found: str = self.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")
        return found

    def wait_for(self, source: str, seconds: float = 30.0) -> Any:
        """Wait until the expression is true, and return its value."""
        return self.wait_until(lambda: self.run(source), source, seconds)

    @staticmethod
    def wait_until(condition: Callable[[], Any], about: str, seconds: float = 30.0) -> Any:
        """Wait for a true value."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if value := condition():
                return value
            time.sleep(0.05)
        raise AssertionError(f"expected {about} within {seconds} s")

    def prefer(self, scheme: str = "light", width: int = 1280, height: int = 900, motion: str = "no-preference") -> None:
        """Show the page as to somebody who prefers light or dark, in a window of that size."""
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page, in PNG."""
        path.write_bytes(b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def params(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of the events of these methods so far."""
        self.run("0")  # which receives events that are there
        return [event["params"] for event in self.events if event["method"] in methods]

    def complaints(self) -> list[str]:
        """All that the browser complains about: errors of scripts, the console, violations of the policy, other findings."""
        raised = [each["exceptionDetails"]["text"] for each in self.params("Runtime.exceptionThrown")]
        logged = [str(each["args"]) for each in self.params("Runtime.consoleAPICalled")]
        entries = [each["entry"]["text"] for each in self.params("Log.entryAdded")]
        issues = [each["issue"]["code"] for each in self.params("Audits.issueAdded")]
        return [*raised, *logged, *entries, *issues]


class Clock:
    """The time of the storage, as the page sees it, and whether the storage can be read."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.is_down = False

    def read(self, *, own: bool) -> Snapshot:
        """Read the storage."""
        if self.is_down:
            raise StorageError("reading SQLite failed: <b>disk</b> on fire")
        return Snapshot(self.now, read_storage(own=own).metrics)
