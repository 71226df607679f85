"""Dashboards in the JSON that Grafana imports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .panels import Dashboard, Panel, Query, Row, Variable, spelled_out

SCHEMA = 42
"""The version of the JSON. Newer versions of Grafana convert it when they load it."""
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
ALL = ".*"
"""The value of a variable for all, which also matches series without the label."""
LINES = {
    "custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": False},
    "color": {"mode": "palette-classic"},
    "min": 0,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"showLegend": True, "displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "textMode": "auto",
        "orientation": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "heatmap": {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "exponent": 0.5, "steps": 64, "reverse": False},
        "cellGap": 1,
        "filterValues": {"le": 1e-9},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
    },
    "table": {"frameIndex": 0, "showHeader": True, "cellHeight": "sm"},
}
"""By kind of panel."""


def dashboard_as_json(dashboard: Dashboard) -> str:
    """Return the file of a dashboard."""
    content = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["pdc", "prometheus"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "links": [_link()],
        "annotations": {"list": []},
        "templating": {"list": [_source(), *map(_variable, dashboard.variables)]},
        "panels": [*_panels(dashboard.rows)],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _link() -> dict[str, Any]:
    """A link to the other dashboards, for the same time."""
    return {
        "title": "pdc",
        "type": "dashboards",
        "tags": ["pdc"],
        "asDropdown": False,
        "icon": "external link",
        "includeVars": False,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }


def _source() -> dict[str, Any]:
    return {
        "name": "datasource",
        "type": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
    }


def _variable(variable: Variable) -> dict[str, Any]:
    query = spelled_out(variable.query)
    several = not variable.regex
    more = {"multi": True, "includeAll": True, "allValue": ALL, "current": {"text": ["All"], "value": ["$__all"]}}
    return {
        "name": variable.name,
        "type": "query",
        "label": variable.label,
        "datasource": SOURCE,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "regex": variable.regex,
        **(more if several else {}),
    }


def _panels(rows: tuple[Row, ...]) -> Iterator[dict[str, Any]]:
    """Place the panels of each row side by side, below its title, as far as they fit."""
    number, top = 0, 0
    for row in rows:
        number += 1
        title = {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": row.folded,
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        }
        placed = [*_placed(row.panels, number + 1, top + 1)]
        yield {**title, "panels": placed if row.folded else []}
        if not row.folded:
            yield from placed
        number += len(placed)
        top = top + 1 if row.folded else max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in placed)


def _placed(panels: tuple[Panel, ...], first: int, top: int) -> Iterator[dict[str, Any]]:
    left, height = 0, 0
    for number, panel in enumerate(panels, first):
        if left + panel.width > COLUMNS:
            left, top, height = 0, top + height, 0
        yield {"id": number, **_panel(panel), "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height}}
        left, height = left + panel.width, max(height, panel.height)


def _panel(panel: Panel) -> dict[str, Any]:
    queries = [_query(query, "ABCDEF"[place], panel.kind) for place, query in enumerate(panel.queries)]
    more: dict[str, Any] = {"repeat": panel.repeat, "repeatDirection": "h", "maxPerRow": 3} if panel.repeat else {}
    if panel.kind == "table":
        names = {f"Value #{query['refId']}": column.legend for query, column in zip(queries, panel.queries, strict=True)}
        more["transformations"] = [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": names}},
        ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": queries,
        "fieldConfig": _fields(panel),
        "options": _options(panel),
        **more,
    }


def _query(query: Query, reference: str, kind: str) -> dict[str, Any]:
    common = {"refId": reference, "datasource": SOURCE, "editorMode": "code", "expr": spelled_out(query.expr)}
    if kind == "table":
        return {**common, "format": "table", "instant": True, "range": False}
    shape = "heatmap" if kind == "heatmap" else "time_series"
    return {**common, "format": shape, "legendFormat": query.legend, "instant": False, "range": True}


def _fields(panel: Panel) -> dict[str, Any]:
    steps = [{"color": "green", "value": None}, *({"color": color, "value": value} for value, color in panel.thresholds)]
    lines = LINES if panel.kind == "timeseries" else {}
    defaults = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}, **lines}
    units = [
        {"matcher": {"id": "byName", "options": query.legend}, "properties": [{"id": "unit", "value": query.unit}]}
        for query in panel.queries
        if query.unit
    ]
    return {"defaults": defaults, "overrides": units}


def _options(panel: Panel) -> dict[str, Any]:
    options = OPTIONS[panel.kind]
    return {**options, "yAxis": {"unit": panel.unit, "axisPlacement": "left"}} if panel.kind == "heatmap" else options
