"""Draw a dashboard with the numbers of the demo: ``python -m monitoring.draw pdc-http docs/dashboard-http.png``.

Gunicorn and Prometheus run for some minutes. This is no Grafana: panels have their places, titles, units and queries, and
matplotlib (of the group ``bench``) draws them.
"""

from __future__ import annotations

import importlib
import json
import math
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from example_apps.demo import MIX, ask, free_port, start

from .__main__ import HERE

MINUTES = 4.0
STEP = 2
RATE = "20s"
OPTIONS = {"PDC_SIZES": "true", "PDC_FIRST_BYTE": "true", "PDC_PROCESS_METRICS": "true", "PDC_IN_PROGRESS_BY_ROUTE": "true"}
FURTHER = ["GET /slow/100", "GET /slow/400", "GET /broken"]
CHOSEN = {"job": "shop", "__rate_interval": RATE}
WIDTH, HEIGHT = 0.7, 0.32
"""Of a cell of the grid, in inches."""
PREFIXED = {"s": "s", "bytes": "B", "Bps": "B/s"}
SUFFIXES = {"reqps": "/s", "ops": "/s", "percentunit": "%"}
HOST = "web-1"
"""In place of the name of this host."""


class Prometheus(NamedTuple):
    """A server that answers queries."""

    port: int

    def ask(self, query: str, over: tuple[float, float] | None = None) -> list[dict[str, Any]]:
        """The series of a query, now or over a time."""
        spelled = re.sub(r"\$\{?(\w+)\}?", lambda name: CHOSEN.get(name[1], ".*"), query)
        place, more = ("query", {}) if over is None else ("query_range", {"start": over[0], "end": over[1], "step": STEP})
        answer = ask(self.port, f"GET /api/v1/{place}?{urllib.parse.urlencode({'query': spelled, **more})}")
        found: list[dict[str, Any]] = json.loads(answer.body)["data"]["result"]
        return found


@contextmanager
def running(folder: Path) -> Iterator[tuple[int, Prometheus]]:
    """The port of the demo, and a Prometheus that scrapes it."""
    port, own_port = free_port(0), free_port(0)
    environment = {**OPTIONS, "PDC_SQLITE_PATH": str(folder / "metrics.db"), "PYTHONPATH": str(HERE.parent)}
    target = f"[{{targets: ['127.0.0.1:{port}']}}]"
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: {STEP}s}}\nscrape_configs: [{{job_name: shop, static_configs: {target}}}]\n"
    )
    options = ["--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{own_port}", "--log.level=error"]
    processes = [start("starlette_app", port, environment, [])]
    try:
        processes.append(subprocess.Popen(["prometheus", *options], cwd=folder))
        yield port, Prometheus(own_port)
    finally:
        for process in processes:
            process.terminate()
            process.wait(30)


def send(port: int, until: float) -> None:
    """Send requests, more in the middle of each minute."""
    while time.time() < until:
        ask(port, random.choice(MIX * 12 + FURTHER * random.randint(1, 4)))
        time.sleep(random.random() * (0.15 + 0.1 * math.cos(2 * math.pi * time.time() / 60)))


def legend(template: str, labels: dict[str, str]) -> str:
    """The legend of a series."""
    shown = labels | ({"host": HOST} if "host" in labels else {})
    return re.sub(r"\{\{(\w+)\}\}", lambda name: shown.get(name[1], ""), template).strip()


def formatter(unit: str) -> Callable[..., str]:
    """A function that spells numbers of that unit of Grafana."""
    prefixed = importlib.import_module("matplotlib.ticker").EngFormatter(PREFIXED.get(unit, ""), sep="")

    def spell(number: float, _: object = None) -> str:
        rounded = f"{100 * number if unit == 'percentunit' else number:.3g}"
        return str(prefixed.format_data(float(rounded))) if unit in PREFIXED else rounded + SUFFIXES.get(unit, "")

    return spell


def draw_graph(axes: Any, panel: Any, prometheus: Prometheus, over: tuple[float, float]) -> None:
    """Draw the lines of a panel."""
    for target in panel["targets"]:
        for series in prometheus.ask(target["expr"], over):
            times, values = zip(*((stamp - over[1], float(value)) for stamp, value in series["values"]), strict=True)
            axes.plot(
                [each / 60 for each in times], values, linewidth=1, label=legend(target["legendFormat"], series["metric"])
            )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes", fontsize=6, loc="right", labelpad=1)
    axes.yaxis.set_major_formatter(formatter(panel["fieldConfig"]["defaults"]["unit"]))
    axes.legend(fontsize=5.5, loc="upper left", bbox_to_anchor=(0, -0.1), borderaxespad=0, frameon=False, ncols=3)


def draw_heat_map(axes: Any, panel: Any, prometheus: Prometheus, over: tuple[float, float]) -> None:
    """Draw the buckets of a panel: those that Prometheus has are cumulated."""
    found = prometheus.ask(panel["targets"][0]["expr"], over)
    rows = {float(series["metric"]["le"]): {stamp: float(value) for stamp, value in series["values"]} for series in found}
    times = sorted({stamp for row in rows.values() for stamp in row})
    bounds = sorted(rows)
    below = [[0.0] * len(times), *([rows[bound].get(stamp, 0.0) for stamp in times] for bound in bounds)]
    heat = [[most - least for least, most in zip(*pair, strict=True)] for pair in pairwise(below)]
    axes.pcolormesh([(stamp - over[1]) / 60 for stamp in times], range(len(bounds)), heat, cmap="Oranges", shading="nearest")
    axes.set_yticks(range(len(bounds)), [f"{bound:g}" for bound in bounds], fontsize=5)


def draw_number(axes: Any, panel: Any, prometheus: Prometheus, over: tuple[float, float]) -> None:
    """Draw the last number of a panel."""
    spell = formatter(panel["fieldConfig"]["defaults"]["unit"])
    (series,) = prometheus.ask(panel["targets"][0]["expr"], over)
    number = float(series["values"][-1][1])
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    color = [step["color"] for step in steps if step["value"] is None or number >= step["value"]][-1]
    axes.text(0.5, 0.4, spell(number), ha="center", va="center", fontsize=14, color=color)
    axes.axis("off")


def draw_table(axes: Any, panel: Any, prometheus: Prometheus, _: tuple[float, float]) -> None:
    """Draw a table of a row for each route."""
    names = [*panel["transformations"][1]["options"]["renameByName"].values()]
    fields = panel["fieldConfig"]["overrides"]
    spell = {each["matcher"]["options"]: formatter(each["properties"][0]["value"]) for each in fields}
    cells: dict[str, dict[str, str]] = {}
    for name, target in zip(names, panel["targets"], strict=True):
        for series in prometheus.ask(target["expr"]):
            (row,) = series["metric"].values()
            cells.setdefault(row, {})[name] = spell[name](float(series["value"][1]))
    axes.axis("off")
    text = [[row, *(values.get(name, "") for name in names)] for row, values in sorted(cells.items())]
    drawn = axes.table(text, colLabels=["route", *names], loc="center", cellLoc="left", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)


KINDS = {"timeseries": draw_graph, "heatmap": draw_heat_map, "stat": draw_number, "table": draw_table}


def draw(board: Any, prometheus: Prometheus, over: tuple[float, float]) -> Any:
    """Draw all rows that are not folded."""
    lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = importlib.import_module("matplotlib.figure").Figure((24 * WIDTH, lines * HEIGHT))
    for panel in board["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        if panel["type"] == "row":
            closed = " …" if panel["collapsed"] else ""
            figure.text(0.01, 1 - (y + 0.7) / lines, panel["title"] + closed, fontsize=11, weight="bold")
            continue
        below = 2 if panel["type"] == "timeseries" else 1  # lines for the legend
        axes = figure.add_axes(((x + 1) / 24, 1 - (y + h - below) / lines, (w - 1.3) / 24, (h - below - 1) / lines))
        axes.set_title(panel["title"], fontsize=9, loc="left")
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
        KINDS[panel["type"]](axes, panel, prometheus, over)
    return figure


def main() -> None:
    """Run the demo, and write the picture."""
    name, path = sys.argv[1:]
    board = json.loads((HERE / "dashboards" / f"{name}.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as (port, prometheus):
        began = time.time()
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(send, [port] * 4, [began + 60 * MINUTES] * 4))
        draw(board, prometheus, (began + 30, time.time())).savefig(path, dpi=80)
    picture = importlib.import_module("PIL.Image").open(path)
    picture.quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()
