"""Every Python under `pdc run` imports this as it starts: its first import of prometheus_client, or of pdc, sets pdc up.

Not earlier: a program that counts nothing pays for nothing, and one that counts begins as if it called `setup_from_environ`
there: in the process that loads the application, after gevent has replaced classes, with the module of uWSGI. This runs in any
version of Python, also where pdc is not installed, and imports nothing that Python has not imported yet.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # the module `typing` would make each start slower
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

PACKAGES = ("prometheus_client", "pdc")


class Finder:
    """Finds the packages as the other finders do, and sets up after the first import of one."""

    def __init__(self) -> None:
        self.is_due = True

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The specification of a package, with a loader that sets up; None for other modules."""
        if name not in PACKAGES or not self.is_due:
            return None
        others: list[Any] = sys.meta_path[sys.meta_path.index(self) + 1 :]
        specs = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec: ModuleSpec | None = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader, self)  # type: ignore[assignment] # its other methods are those of the loader
        return spec


class Loader:
    """The loader of a package, which sets up once the package is there."""

    def __init__(self, loader: Any, finder: Finder) -> None:
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        """Run the module. Each of the two packages may import the other one: the first one sets up."""
        module.__loader__ = module.__spec__.loader = self._loader
        is_first, self._finder.is_due = self._finder.is_due, False
        self._loader.exec_module(module)
        if is_first:
            _set_up()


def _set_up() -> None:
    """Use the storage of the environment. Where that fails, the program runs on, with metrics in its memory."""
    try:
        import pdc

        pdc.setup_from_environ()
    except Exception as error:  # noqa: BLE001 - the program has no part in it
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == "pdc"
        reason = "install prometheus-distributed-client there, too, for pdc is missing" if is_missing else error
        text = f"pdc run: the metrics of {sys.executable} stay in its memory: {' '.join(str(reason).split())}"
        print(text, file=sys.stderr)  # noqa: T201 - a daemon may have closed the stream, which `print` accepts


def _import_next() -> None:
    """Import the `sitecustomize` that Python would have imported without ours, if there is one."""
    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - `pathlib` would make each start slower
    sys.path[:] = [each for each in sys.path if each != folder]
    ours = sys.modules.pop(__name__)
    try:
        __import__(__name__)
    except ModuleNotFoundError as error:
        if error.name != __name__:
            raise
        sys.modules[__name__] = ours


if __name__ == "sitecustomize":
    if "PDC_INSTALL" in os.environ:
        sys.meta_path.insert(0, Finder())
    _import_next()
