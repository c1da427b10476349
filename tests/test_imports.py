"""Imports point one way, and the package is quick to import.

Each module of the package stands on a layer; it may import from lower layers, and from its own,
but never from a higher one. Read from the source, so imports inside functions count too.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(importlib.util.find_spec("cot_engine").submodule_search_locations[0])
STRATEGIES = Path(importlib.util.find_spec("cot_engine_strategies").submodule_search_locations[0])

LAYERS = [
    {"__version__"},
    {  # values
        *("errors", "checks", "escape", "concurrency", "reading", "plain", "parts", "replies"),
        "outputs",
        *("types", "boundaries", "images", "decoding", "download", "flops"),
        "statistics",
    },
    {"backends"},  # the Backend protocol and those that answer it
    {"stages", "answers", "prompts", "budget", "events"},
    {"strategy", "tournament", "judges"},
    {"progress", "session", "growth", "filling", "yielded", "arena", "search", "rejudge"},
    {"plugins", "config", "profile", "testing", "scenes"},
    {"run"},
    {"loop", "feed", "modes"},
    {"engine"},
    {"ablation", "views"},
    {"report"},
    {"training"},
    {"cli", "__main__", "bundled"},  # what users touch
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> list[tuple[str, Path]]:
    """(dotted name below cot_engine, file) of every module; the package itself is ""."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(p for p in parts if p != "__init__"), path))
    return found


def imported(path: Path) -> set[str]:
    """The modules that a file imports, but for those that only a type checker reads."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    names = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = (
                ["cot_engine", *path.relative_to(ROOT).parts][: -node.level] if node.level else []
            )
            start = ".".join([*above, *filter(None, [node.module])])
            names |= {f"{start}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str | None:
    """The top-level part of cot_engine that a dotted name belongs to, if it is one."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "cot_engine" and len(pieces) > 1 else None


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value or "__init__"))
def test_imports_point_one_way(name, path):
    if not name:  # the package's __init__ names everything, by text, and imports nothing
        assert not {p for p in map(part, imported(path)) if p}
        return
    here = name.split(".")[0]
    assert here in LEVEL, f"{here} stands on no layer: give it one"
    for target in filter(None, map(part, imported(path))):
        assert target in LEVEL, f"{name} imports {target}, which stands on no layer"
        assert LEVEL[target] <= LEVEL[here], f"{name} imports {target}, which stands above it"


def test_backends_know_values_and_errors_only():
    allowed = LAYERS[0] | LAYERS[1] | LAYERS[2]
    for name, path in modules():
        if name.startswith("backends"):
            assert {p for p in map(part, imported(path)) if p} <= allowed, name


def test_strategies_use_public_names_and_are_imported_by_nothing():
    import cot_engine

    for path in STRATEGIES.glob("*.py"):
        for target in imported(path):
            if target.startswith("cot_engine"):
                public = target.removeprefix("cot_engine.")
                assert public in cot_engine.__all__, f"{path.name}: {target}"
    for _, path in modules():
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


HEAVY = {"torch", "transformers", "numpy", "PIL", "rich", "typer", "bitsandbytes"}


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import cot_engine", HEAVY),
        ("from cot_engine import Plan, Expand, Trace", HEAVY),
        ("import cot_engine_strategies.stage_beam, cot_engine_strategies.majority", HEAVY),
        ("from cot_engine import plugins; plugins.make('strategy', 'greedy', {})", HEAVY),
        ("from cot_engine import Engine", {"torch", "transformers", "bitsandbytes"}),
        ("import cot_engine.cli.app", {"torch", "transformers", "bitsandbytes"}),
    ],
)
def test_importing_loads_nothing_heavy(code, heavy):
    assert not loaded(code) & heavy
