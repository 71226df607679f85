"""Write the files that are made from others: ``python -m monitoring``."""

from __future__ import annotations

from pathlib import Path

from .boards import DASHBOARDS, LIBRARIES
from .grafana import dashboard_as_json

HERE = Path(__file__).parent
FIRST, *OTHERS = LIBRARIES


def files() -> dict[Path, str]:
    """Return their content: the dashboards for Grafana, and the rules of the first library with the names of the others."""
    dashboards = {HERE / "dashboards" / f"{each.uid}.json": dashboard_as_json(each) for each in DASHBOARDS}
    rules = (HERE / "rules" / f"{FIRST}.yml").read_text(encoding="utf-8")
    return dashboards | {HERE / "rules" / f"{name}.yml": rules.replace(FIRST, name) for name in OTHERS}


def main() -> None:
    """Write them."""
    for path, content in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
