"""How the package is cut into modules: figures for a person, cycles and strays for `make check`.

``python -m datalake_assets_tests.structure`` prints the figures; ``--check`` prints nothing and fails where modules
import each other in a circle. Imports within functions count, those for type checkers alone too.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "datalake_assets"
#: The embedded server is a program of its own, which a newcomer can ignore.
APART = "datalake_assets.demo"
#: Suites that implementations run.
SUITES = "datalake_assets.testing"
#: Where systems that rows come from may be named.
SOURCES = ("datalake_assets.sources", "datalake_assets.demo", "datalake_assets.cli.serve")


@dataclass(frozen=True)
class Module:
    """A module: its file, its length, and the modules of the package that it imports."""

    path: Path
    lines: int
    imports: frozenset[str]
    functions: tuple[int, ...]


def read_modules(package: Path = PACKAGE) -> dict[str, Module]:
    """All modules of the package by dotted name; packages are their ``__init__``."""
    files = {_dotted(path, package): path for path in sorted(package.rglob("*.py"))}
    found = {}
    for name, path in files.items():
        text = path.read_text()
        nodes = [*ast.walk(ast.parse(text))]
        imports = frozenset(_imported(nodes, files)) - {name}
        lengths = [
            node.end_lineno - node.lineno + 1
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        ]
        found[name] = Module(path, len(text.splitlines()), imports, tuple(lengths))
    return found


def _dotted(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(nodes: Iterable[ast.AST], known: Mapping[str, Path]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield whole
                elif node.module in known:
                    yield node.module


def cycle(modules: Mapping[str, Module]) -> list[str]:
    """Modules that import each other in a circle, in its order; empty if there are none."""
    try:
        TopologicalSorter({name: module.imports for name, module in modules.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def with_one_importer(modules: Mapping[str, Module]) -> dict[str, str]:
    """Modules that a single other one imports, with that; packages' own ``__init__`` aside."""
    importers: dict[str, list[str]] = defaultdict(list)
    for name, module in modules.items():
        for each in module.imports:
            importers[each].append(name)
    return {
        name: by[0]
        for name, by in sorted(importers.items())
        if len(by) == 1 and modules[name].path.name != "__init__.py"
    }


def repeated_names(modules: Mapping[str, Module]) -> dict[str, list[str]]:
    """File names that stand in several folders, ``base`` and ``__init__`` aside, and suites, which mirror names."""
    by_name = defaultdict(list)
    for name, module in modules.items():
        if not name.startswith(SUITES) and module.path.name not in {"__init__.py", "__main__.py", "base.py"}:
            by_name[module.path.name].append(name)
    return {file: names for file, names in by_name.items() if len(names) > 1}


def naming(modules: Mapping[str, Module], word: str) -> list[str]:
    """Modules outside of the sources and the demo in which the word stands."""
    return [
        name
        for name, module in modules.items()
        if not name.startswith(SOURCES) and re.search(word, module.path.read_text(), re.IGNORECASE)
    ]


def figures(modules: Mapping[str, Module]) -> dict[str, object]:
    """What a review asks for; the demo and the published suites are left out, but for ``modules_in_all``."""
    apart = (APART, SUITES)
    ours = {name: module for name, module in modules.items() if not name.startswith(apart) and module.lines > 1}
    lines = sorted(module.lines for module in ours.values())
    functions = [length for module in ours.values() for length in module.functions]
    single = [name for name in with_one_importer(modules) if name in ours]
    return {
        "modules": len(ours),
        "modules_in_all": sum(module.lines > 1 for module in modules.values()),
        "lines_mean": round(statistics.mean(lines)),
        "lines_median": round(statistics.median(lines)),
        "lines_longest": lines[-1],
        "modules_over_500_lines": sum(each > 500 for each in lines),
        "function_median": statistics.median(functions),
        "function_longest": max(functions),
        "with_one_importer": len(single),
        "with_one_importer_share": round(len(single) / len(ours), 2),
        "cycle": cycle(modules),
        "repeated_file_names": len(repeated_names(modules)),
        "naming_ksqldb_elsewhere": len(naming(modules, "ksql")),
    }


def main() -> int:
    """Prints the figures, or checks for cycles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where modules import each other in a circle")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="another checkout's package")
    options = parser.parse_args()
    modules = read_modules(options.package.resolve())
    if options.check:
        circle = cycle(modules)
        if circle:
            print("import cycle: " + " -> ".join(circle), file=sys.stderr)
        return bool(circle)
    for name, value in figures(modules).items():
        print(f"{name:28} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
