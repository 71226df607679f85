"""The architecture: imports between modules, shared names, and lengths."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from conftest import ROOT

PACKAGES = ("pdc", "pdc_flask", "pdc_django", "pdc_starlette")
LONGEST_MODULE, LONGEST_CLASS, LONGEST_FUNCTION = 500, 350, 30
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def is_private(name: str) -> bool:
    """True for a name that begins with one underscore."""
    return name.startswith("_") and not name.startswith("__")


class Module:
    """A module of ours with all its imports, at any depth."""

    def __init__(self, path: Path) -> None:
        self.path = path.relative_to(ROOT).as_posix()
        folders = path.relative_to(ROOT).parent.parts
        self._package = folders
        self.name = ".".join([*folders, *([] if path.stem == "__init__" else [path.stem])])
        self._text = path.read_text(encoding="utf-8")
        self._nodes = [*ast.walk(ast.parse(self._text))]

    def _imports(self) -> Iterator[tuple[str, ast.alias, int]]:
        """The full name of the module that each import is from (empty for `import module`), the imported name, and the line."""
        for node in self._nodes:
            if isinstance(node, ast.Import):
                yield from (("", alias, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                folders = self._package[: len(self._package) - node.level + 1] if node.level else ()
                base = ".".join([*folders, *([node.module] if node.module else [])])
                yield from ((base, alias, node.lineno) for alias in node.names)

    def imports(self) -> set[str]:
        """The names of our modules that it imports."""
        names = ((f"{base}.{alias.name}".removeprefix("."), base) for base, alias, _ in self._imports())
        return {name if name in MODULES else base for name, base in names}.intersection(MODULES)

    def private_uses(self) -> Iterator[str]:
        """The uses of an underscore name of another of our modules: in an import, or as an attribute of an imported name."""
        ours = set()
        for base, alias, line in self._imports():
            name = f"{base}.{alias.name}".removeprefix(".")
            if name.split(".")[0] in PACKAGES:
                ours.add(alias.asname or alias.name)
                if any(map(is_private, name.split("."))):
                    yield f"{self.path}:{line} imports {name}"
        attributes = (node for node in self._nodes if isinstance(node, ast.Attribute) and is_private(node.attr))
        for node in attributes:
            if isinstance(node.value, ast.Name) and node.value.id in ours:
                yield f"{self.path}:{node.lineno} uses {node.value.id}.{node.attr}"

    def lengths(self) -> Iterator[tuple[int, int, str]]:
        """The lines of the module, of its classes, and of the statements of its functions; the most lines; the place."""
        yield len(self._text.splitlines()), LONGEST_MODULE, self.path
        for node in self._nodes:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
                first = [node] if isinstance(node, ast.ClassDef) else statements[:1]
                most = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
                yield sum((node.end_lineno or 0) - each.lineno + 1 for each in first), most, f"{self.path}:{node.name}"


MODULES = {module.name: module for package in PACKAGES for module in map(Module, sorted((ROOT / package).rglob("*.py")))}


def layers() -> list[list[str]]:
    """The paths of each layer, from the lowest up: the table of docs/architecture.md in reverse."""
    (table,) = re.findall(r"^\| Layer \| .*\n\|[-|]+\n((?:\|.*\n)+)", ARCHITECTURE, re.MULTILINE)
    return [re.findall(r"`([^`]+)`", row.split("|")[2]) for row in reversed(table.splitlines())]


LAYERS = layers()
HEIGHTS = {path: height for height, paths in enumerate(LAYERS) for path in paths}


def homes(name: str) -> list[str]:
    """The paths of the table that contain the module: exactly one."""
    path = MODULES[name].path
    return [each for each in HEIGHTS if path == each or (each.endswith("/") and path.startswith(each))]


def test_the_table_of_layers_has_every_module_once() -> None:
    """Each module is in one row of docs/architecture.md, and each path of the table is a folder or a module."""
    wrong = [f"expected one layer for {name}, got {homes(name)}" for name in MODULES if len(homes(name)) != 1]
    wrong += [f"expected {path} to exist" for path in HEIGHTS if not (ROOT / path).exists()]
    assert not wrong, "\n".join(wrong)
    assert len(HEIGHTS) == len([*chain(*LAYERS)])


def may_import(importer: str, imported: str) -> bool:
    """True if the imported module is in the same folder, or in a lower layer."""
    return homes(importer) == homes(imported) or HEIGHTS[homes(importer)[0]] > HEIGHTS[homes(imported)[0]]


def test_imports_go_down() -> None:
    """A module imports its own folder and lower layers, also for type checkers and within functions."""
    placed = {name for name in MODULES if len(homes(name)) == 1}
    pairs = ((name, each) for name in sorted(placed) for each in MODULES[name].imports() & placed)
    wrong = [
        f"{name} ({homes(name)[0]}) imports {each} ({homes(each)[0]})" for name, each in pairs if not may_import(name, each)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Modules without imports, or without importers, are removed again and again: no module remains."""
    left = {name: module.imports() - {name} for name, module in MODULES.items()}
    while ends := {name for name, imports in left.items() if not imports} | left.keys() - {*chain(*left.values())}:
        left = {name: imports - ends for name, imports in left.items() if name not in ends}
    assert not left, "\n".join(f"{name} imports {sorted(imports)}" for name, imports in left.items())


def test_modules_use_public_names_of_each_other() -> None:
    """No module imports or reads an underscore name of another module."""
    wrong = [use for module in MODULES.values() for use in module.private_uses()]
    assert not wrong, "\n".join(wrong)


def test_errors_are_suppressed_by_one_function() -> None:
    """Modules suppress errors with `tolerate`: `contextlib.suppress` would take exceptions that the application raised."""
    allowed = ("pdc/process/interruption.py", "pdc/process/log.py", "pdc/storage/contract.py")
    names = "from contextlib import .*suppress|contextlib.suppress"
    own = {module.path for module in MODULES.values() if re.search(names, (ROOT / module.path).read_text())}
    assert own <= {*allowed, *(module.path for module in MODULES.values() if module.path.startswith("pdc/cli/"))}


def test_modules_classes_and_functions_are_short() -> None:
    """A module has 500 lines at most, a class 350, the statements of a function 30."""
    lengths = chain.from_iterable(module.lengths() for module in MODULES.values())
    wrong = [f"expected at most {most} lines in {place}, got {lines}" for lines, most, place in lengths if lines > most]
    assert not wrong, "\n".join(wrong)
