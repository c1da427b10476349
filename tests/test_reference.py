"""The API reference is made of docstrings: every public name has one, and it names the errors of
ours that it raises."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys

import cot_engine
from cot_engine import errors

MODULES = ("cot_engine.core.events", "cot_engine.testing")
"""What the reference has beside the public names of `cot_engine` itself."""
PROTOCOLS = ("Backend", "Judge", "Scorer", "Strategy")
"""What these say of a method holds for every class that has it."""


def homes() -> dict[str, str]:
    """The module that defines each name of the reference."""
    found = dict(cot_engine._HOME)
    for module in map(importlib.import_module, MODULES):
        listed = getattr(module, "__all__", ())
        for name in listed or vars(module):
            home = getattr(getattr(module, name), "__module__", None)
            if name in listed or home == module.__name__:
                found.setdefault(name, home)
    return found


def documented() -> dict[str, tuple[ast.stmt, str]]:
    """Where each name of the reference is defined, "Class.method" too, and what is said of it."""
    found = {}
    for name, home in homes().items():
        body = ast.parse(inspect.getsource(importlib.import_module(home))).body
        for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
            if name == getattr(node, "name", None):
                found[name] = node, ast.get_docstring(node) or ""
                for inner in node.body if isinstance(node, ast.ClassDef) else ():
                    if is_function(inner):
                        found[f"{name}.{inner.name}"] = inner, ast.get_docstring(inner) or ""
            elif isinstance(node, ast.Assign) and name == ast.unparse(node.targets[0]):
                text = getattr(after, "value", None)
                found[name] = node, str(getattr(text, "value", ""))
    return found


def is_function(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


ALL = {
    name: at
    for name, at in documented().items()
    if not name.rpartition(".")[2].startswith("_") or name.endswith("__")
}


def said_of(name: str) -> str:
    """A method's docstring, and that of the protocol's; of one with underscores, its class's."""
    of, _, method = name.partition(".")
    if method.startswith("_"):
        return ALL[of][1]
    return " ".join([ALL[name][1], *(ALL.get(f"{p}.{method}", ("", ""))[1] for p in PROTOCOLS)])


def raised(node: ast.stmt) -> set[str]:
    """The errors of ours that stand behind a `raise` in this very function."""
    names = (ast.unparse(n.exc) for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc)
    return {name for text in names if hasattr(errors, name := text.partition("(")[0])}


def test_every_name_says_what_it_is():
    assert set(cot_engine.__all__) <= ALL.keys()
    assert {"Finished", "check_judge", "Engine.solve", "Judge.symmetric"} <= ALL.keys()
    assert not [name for name in ALL if len(said_of(name).split()) < 2]


def test_every_function_names_the_errors_that_it_raises():
    found = {name: raised(node) for name, (node, _) in ALL.items() if is_function(node)}
    assert found["parse_budget"] == {"ConfigError"} and "StrategyError" in said_of("Engine.solve")
    assert not [
        f"{name} raises {error}"
        for name, those in found.items()
        for error in those
        if not any(base.__name__ in said_of(name) for base in vars(errors)[error].__mro__[:-3])
    ]


def test_the_reference_is_made_without_a_warning(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "pdoc", "-d", "markdown", "--no-show-source"]
    run = subprocess.run(
        [*command, "-o", str(tmp_path), "cot_engine", *MODULES],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    page = (tmp_path / "cot_engine.html").read_text("utf-8")
    assert all(f'id="{name}"' in page for name in cot_engine.__all__)
