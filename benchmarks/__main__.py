"""Run suites: ``python -m benchmarks --suite web --quick``."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import contest, report
from .contest import Arena, Effort, Suite
from .report import Result
from .suites import SUITES

QUICK = Effort(rounds=9, round_seconds=0.01, costly_rounds=3)
THOROUGH = Effort(rounds=41, round_seconds=0.02, costly_rounds=5)


@contextmanager
def packages_of(checkout: Path | None) -> Iterator[Path | None]:
    """A folder with only the packages of that checkout: contenders and their runner are today's."""
    if checkout is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pdc-before-") as folder:
        for package in checkout.absolute().glob("pdc*/__init__.py"):
            Path(folder, package.parent.name).symlink_to(package.parent)
        if not Path(folder, "pdc").is_dir():
            sys.exit(f"--before: expected a checkout with the package pdc, got {checkout}")
        yield Path(folder)


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this one; may be given again")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, and less data to scrape")
    parser.add_argument("--rounds", type=int, metavar="N", help="measure so many rounds")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), metavar="FOLDER")
    parser.add_argument("--document", type=Path, metavar="FILE", help="write the tables of all suites in that folder there")
    parser.add_argument("--version2", type=Path, metavar="PYTHON", help="of an environment with version 2 of this project")
    parser.add_argument(
        "--interpreter", action="append", metavar="PYTHON", help="of the suite `interpreters`; may be given again"
    )
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="compare with another commit of this project instead")
    parser.add_argument("--no-plot", action="store_true", help="do without matplotlib")
    return parser.parse_args()


def measured(suite: Suite, arena: Arena, before: Path | None, options: argparse.Namespace) -> list[Result]:
    """Measure the chosen cases of a suite, and print their tables."""
    effort = QUICK if options.quick else THOROUGH
    if options.rounds:
        effort = Effort(options.rounds, effort.round_seconds, options.rounds)
    cases = [case for case in suite.cases if options.only in case.name]
    if before is not None:
        cases = [pair for case in cases for pair in contest.against(case, before)]
    if cases:
        report.say(f"## {suite.title}\n")
    found = []
    for case in cases:
        for measure, costs in contest.run(case, arena, effort).items():
            found.append(report.result(case, costs, measure))
            report.say(report.table(found[-1]))
    return found


def main() -> None:
    """Measure, and write a table to the terminal, JSON and a plot to a folder."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that workers and the server end, too
    if options.before is None and options.version2 is None:
        report.say("Version 2 of this project is left out: --version2 names the Python of an environment that has it.\n")
    options.output.mkdir(parents=True, exist_ok=True)
    with Arena.opened(options.version2) as arena, packages_of(options.before) as before:
        for name in options.suite or SUITES:
            started = time.monotonic()
            pythons = {"pythons": options.interpreter} if name == "interpreters" and options.interpreter else {}
            suite = SUITES[name](quick=options.quick, **pythons)
            if found := measured(suite, arena, before, options):
                report.write_json(suite, found, options.output / f"{name}.json")
                if not options.no_plot:
                    report.plot(suite, found, options.output / f"{name}.png")
                report.say(f"{suite.title}: {time.monotonic() - started:.0f} s, written to {options.output}\n")
    if options.document is not None:
        report.write_page(SUITES, options.output, options.document)


main()
