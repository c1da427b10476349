"""`cot-engine list`: what there is to choose from."""

from __future__ import annotations

import inspect
import json as _json
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from cot_engine.backends.server.opener import Server
from cot_engine.cli.columns import show
from cot_engine.errors import CotEngineError, InputError, UnknownNameError, shown

if TYPE_CHECKING:
    from cot_engine.plugins import Kind

Listed = dict[str, Any]


def run(
    what: str, model: str | None, plan: str | None, probe: str | None = None, *, json: bool
) -> None:
    if what not in KINDS:
        raise UnknownNameError("listing of", what, KINDS)
    if plan is not None and what != "stages":
        raise InputError(
            "--plan belongs to the stages.", "Write: cot-engine list stages --plan FILE"
        )
    if model is not None and what != "models":
        raise InputError(
            f"There is a second argument, {model!r}, which only models has.",
            "Write: cot-engine list models MODEL",
        )
    if probe is not None and (what != "models" or model is not None):
        raise InputError(
            "--probe belongs to the models, and names one.",
            "Write: cot-engine list models --probe http://host:8000/v1",
        )
    if model is not None and re.fullmatch(Server.models, model):
        raise InputError(
            f"{shown(model)} is a server, which has to be asked.",
            f"Write: cot-engine list models --probe {model}",
        )
    if probe is not None:
        rows = servers(probe)
    elif model is not None:
        rows = [_model(model)]
    else:
        rows = stages(plan) if what == "stages" else KINDS[what]()
    if json:
        print(_json.dumps(rows, indent=2))
        return
    show([(row["name"], _said(row)) for row in rows])


def _said(row: Listed) -> list[str]:
    from cot_engine.cli.needs import lines

    said = [row["about"]]
    if row.get("parameters"):
        said.append(", ".join(f"{name}={value}" for name, value in row["parameters"].items()))
    if "told" in row:
        said += [f"{name}: {text}" for name, text in row["told"].items()]
    if "needs" in row:
        said += [f"{key}: {text}" for key, text in lines(row["needs"]).items()]
    return said


def strategies() -> list[Listed]:
    from cot_engine.options.auto import ABOUT
    from cot_engine.plugins import AUTO

    return [{"name": AUTO, "about": ABOUT, "parameters": {}}, *_plugins("strategy")]


def judges() -> list[Listed]:
    return [{**row, "parameters": {}} for row in _plugins("judge")]


def _plugins(kind: Kind) -> list[Listed]:
    from cot_engine import plugins

    rows = []
    for name in plugins.names(kind):
        try:
            part = plugins.load(kind, name)
        except CotEngineError as error:  # one that is broken must not hide the others
            rows.append({"name": name, "about": f"cannot be used: {error}", "parameters": {}})
            continue
        rows.append({"name": name, "about": _first_line(part), "parameters": _parameters(part)})
    return rows


def _first_line(part: Any) -> str:
    """What it is, by its docstring."""
    text = inspect.getdoc(part) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _parameters(part: Any) -> dict[str, Any]:
    """The fields with their defaults; None where there is none."""
    if not is_dataclass(part):
        return {}
    shown = {}
    for f in fields(part):
        if f.init:
            made = f.default_factory() if f.default_factory is not MISSING else None
            value = f.default if f.default is not MISSING else made
            plain = value is None or isinstance(value, (bool, int, float, str))
            shown[f.name] = value if plain else repr(value)
    return shown


def tournaments() -> list[Listed]:
    from cot_engine.search.tournament import TOURNAMENTS

    return [{"name": name, "about": _first_line(each)} for name, each in TOURNAMENTS.items()]


def models() -> list[Listed]:
    """The model in the package, then every architecture of which a checkpoint can be used."""
    from cot_engine.backends.models.registry import ARCHITECTURES

    bundled = "A small model of coloured scenes that comes with the package."
    rows = [{**_model("bundled"), "about": bundled}]
    for name, (_, example) in ARCHITECTURES.items():
        rows.append({"name": name, "about": f"such as --model {example}"})
    return rows


def _model(name: str) -> Listed:
    """A model that is here, and what it needs. Raises ModelError."""
    from cot_engine.cli.needs import needs

    told = needs(name)
    return {"name": name, "about": "What it needs; nothing was loaded.", "needs": told}


def servers(address: str) -> list[Listed]:
    """What the servers at an address can do. Raises ModelError and InputError."""
    about = "A server that can be searched on; what it can do was found out by asking it."
    return [
        {"name": url, "about": about, **found.plain(), "told": found.told()}
        for url, found in Server().probe(address)
    ]


def stages(path: str | None = None) -> list[Listed]:
    from cot_engine.core.stages import DEFAULT_PLAN, Plan

    plan = DEFAULT_PLAN if path is None else Plan.from_toml(path)
    return [
        {
            "name": stage.tag,
            "about": stage.purpose,
            "parameters": {
                "length": stage.length,
                "width": stage.width,
                "optional": stage.optional,
                "needs_image": stage.needs_image,
            },
        }
        for stage in plan
    ]


def benchmarks() -> list[Listed]:
    """The benchmarks whose files are read and whose predictions are scored."""
    from cot_engine.benchmarks.catalogue import BENCHMARKS
    from cot_engine.benchmarks.rulesets import RULE_SETS

    return [
        {
            "name": each.name,
            "about": each.about,
            "rules": [name for name, rules in RULE_SETS.items() if each.kind in rules.reads],
            "questions": each.questions,
        }
        for each in BENCHMARKS.values()
    ]


KINDS: dict[str, Callable[[], list[Listed]]] = {
    "strategies": strategies,
    "judges": judges,
    "tournaments": tournaments,
    "models": models,
    "stages": stages,
    "benchmarks": benchmarks,
}
