"""Imports point one way between the rooms, none in a circle, and the package is quick to import.

Read from the source, so imports inside functions count too, and those for type checkers alone.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(importlib.util.find_spec("cot_engine").submodule_search_locations[0])
STRATEGIES = Path(importlib.util.find_spec("cot_engine_strategies").submodule_search_locations[0])

LEAVES = {"errors", "escape", "files", "images", "statistics"}
CORE = LEAVES | {"core"}
SEARCH = CORE | {"plugins", "judging", "backends", "search"}
ENGINE = SEARCH | {"scenes", "options", "engine"}
ROOMS = {
    "escape": set(),
    "errors": {"escape"},
    "statistics": {"errors"},
    "files": {"errors"},
    "images": {"errors", "files"},
    "core": LEAVES - {"statistics"},
    "plugins": {"errors", "core"},
    "backends": CORE - {"statistics"} | {"plugins"},
    "judging": CORE | {"plugins"},
    "search": SEARCH,
    "scenes": LEAVES,
    "options": SEARCH | {"scenes"},
    "engine": ENGINE,
    "show": CORE,
    "testing": SEARCH,
    "questions": CORE | {"options", "scenes"},
    "benchmarks": CORE | {"backends", "questions"},
    "answering": ENGINE | {"benchmarks", "questions"},
    "ablation": ENGINE | {"benchmarks", "questions"},
    "report": ENGINE | {"questions", "ablation", "show"},
    "training": ENGINE | {"questions", "ablation", "report", "show"},
    "bundled": set(),
    "serve": ENGINE | {"show"},
    "cli": ENGINE
    | {"answering", "benchmarks", "questions", "ablation", "report", "serve", "show", "training"},
    "__main__": {"cli"},
}
"""What each room may import, beside itself."""


def modules() -> dict[str, Path]:
    """The file of every module, by its dotted name below cot_engine; the package itself is ""."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imported(path: Path) -> set[str]:
    """The names that a file imports, dotted."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write imports from the package's name on"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """The modules of cot_engine that a file imports, "" for a public name."""
    found = set()
    for name in imported(path):
        if name == "cot_engine" or name.startswith("cot_engine."):
            name = name.removeprefix("cot_engine").removeprefix(".")
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


MODULES = modules()
EDGES = {name: ours(path) - {name} for name, path in MODULES.items()}


def room(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("here", sorted({room(name) for name in MODULES if name}))
def test_a_room_imports_what_it_may(here):
    assert here in ROOMS, f"{here} is no room: say what it may import"
    for name, targets in EDGES.items():
        if room(name) == here:
            for target in filter(None, targets):
                assert room(target) in ROOMS[here] | {here}, f"{name} imports {target}"


def test_rooms_and_modules_import_in_no_circle():
    for graph in (ROOMS, EDGES):
        try:
            TopologicalSorter({k: v - {k, ""} for k, v in graph.items()}).prepare()
        except CycleError as error:
            pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_every_room_says_what_lives_there():
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            assert len(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "") > 40, name
    assert imported(MODULES[""]) <= {"importlib.import_module", "pathlib.Path", "typing.Any"}


def test_strategies_use_public_names_and_are_imported_by_nothing():
    import cot_engine

    for path in STRATEGIES.glob("*.py"):
        for target in imported(path):
            if target.startswith("cot_engine"):
                public = target.removeprefix("cot_engine.")
                assert public in cot_engine.__all__, f"{path.name}: {target}"
    for path in MODULES.values():
        names = imported(path)
        assert not any(n.startswith("cot_engine_strategies") for n in names), path


def test_every_public_name_is_there():
    import cot_engine

    for name in cot_engine.__all__:
        assert getattr(cot_engine, name) is not None
    assert set(cot_engine.__all__) <= set(dir(cot_engine))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = cot_engine.no_such_name


def loaded(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after running `code`."""
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("\n"))


EXTRAS = {"fastapi", "uvicorn", "pydantic", "prometheus_client", "httpx2", "tenacity"}
HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "PIL",
    "rich",
    "typer",
    "jinja2",
    "bitsandbytes",
} | EXTRAS


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import cot_engine", HEAVY),
        ("from cot_engine import Plan, Expand, Trace", HEAVY),
        ("import cot_engine_strategies.stage_beam, cot_engine_strategies.majority", HEAVY),
        ("from cot_engine import plugins; plugins.make('strategy', 'greedy', {})", HEAVY),
        ("from cot_engine import Engine", {"torch", "transformers", "bitsandbytes", *EXTRAS}),
        ("import cot_engine.cli.app", {"torch", "transformers", "jinja2", "bitsandbytes", *EXTRAS}),
    ],
)
def test_importing_loads_nothing_heavy(code, heavy):
    assert not loaded(code) & heavy
