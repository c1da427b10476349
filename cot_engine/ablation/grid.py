"""What an ablation runs: cells (one configuration each), seeds, data, read from one TOML file.

    seeds = [0, 1, 2]

    [data]
    source = "scenes"            # or a .jsonl or .tsv file
    n = 200

    [run]                        # what all cells share: any key of a configuration file
    temperature = 1.5

    [match]                      # compute: each problem gets what the reference spent on it,
    unit = "flops"               # or `amount`, the same for all
    reference = "stage-beam n=4"

    [[cells]]
    strategy = "stage-beam"      # a list is an axis: one cell for each of its values
    n = [1, 2, 3, 4]

    [[cells]]
    strategy = "best-of-n"
    matched = true

A key of a cell that is not one of a configuration (`config.RunConfig`) is a parameter of its
strategy. The baselines (greedy, one sample, and at matched compute majority vote) are added where
the file does not name them; what needs no search of its own (majority vote, random choice and
oracle over the candidates of another cell) is worked out by the analysis.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cot_engine import plugins
from cot_engine.ablation.labels import CellDraft, labelled
from cot_engine.ablation.matching import has, levelled, part_of
from cot_engine.core.options import options_of
from cot_engine.core.stages import Plan
from cot_engine.core.tables import between, from_table, located, must, unknown
from cot_engine.errors import ConfigError, UnknownNameError, shown
from cot_engine.files.reading import read_extended
from cot_engine.options.config import KEYS, RunConfig, keys_of
from cot_engine.options.resolve import check_tournament
from cot_engine.search.budget import Unit, parse_budget, parse_unit

MAX_CELLS = 500
_DATA = ("source", "n", "split", "seed", "rule")
_MATCH = ("unit", "reference", "amount")
_NOT_SHARED = ("strategy", "parameters", "seed", "budget")  # of [run]
_SHARED = keys_of("model", "running", "reading")  # of [run] alone
# What changes nothing of what comes of a search, and what a cell's hash has elsewhere.
_NO_MATTER = ("seed", "parameters", "strategy", *keys_of("running", "reading"))
_DRAWN = tuple(key for key in keys_of("sampling") if key != "seed")
_WAY = (*_DRAWN, *keys_of("writing"))  # what decides how one response is drawn


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[\w. -]{1,64}", value))


_Name = Annotated[str, must("1 to 64 letters, digits, spaces, dots, - or _", _is_name)]
Rollouts = Annotated[int, between(0, 64)]


@dataclass(frozen=True, slots=True)
class _File:
    """What a file of a grid may hold."""

    name: _Name
    seeds: tuple[Annotated[int, between(0, 2**63 - 1)], ...] = (0,)
    rollouts: Rollouts = 0
    data: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    match: dict[str, Any] = field(default_factory=dict)
    cells: Any = ()


@dataclass(frozen=True, slots=True)
class _Own:
    """The keys of a cell that are neither settings nor parameters."""

    name: str = ""
    matched: bool = False
    rollouts: Rollouts | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """How much a cell may spend on each problem: `amount` of `unit`, or what the cell with the
    hash `reference` spent on that problem and seed."""

    unit: Unit
    amount: float | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration of the grid. `label` names it in tables; `hash` names what it does.

    `rollouts` greedy continuations of each judged candidate tell what it was worth; they are
    charged to nobody. One that was `added` is a baseline that the grid did not name.
    """

    label: str
    config: RunConfig
    match: Matching | None = None
    rollouts: int = 0
    added: bool = False

    @property
    def n(self) -> int | None:
        """The strategy's number of candidates, if it has one."""
        return self.parameters.get("n")

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters of the strategy, defaults included."""
        part = part_of(self.config)
        made = is_dataclass(part) and not isinstance(part, type)
        return asdict(part) if made else dict(self.config.parameters)

    @property
    def hash(self) -> str:
        """16 hex digits over all that decides what this cell's searches do, but for the problem,
        the seed, the weights and the code."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()[:16]

    def plain(self) -> dict[str, Any]:
        """The cell as JSON has it, without its label."""
        config = {k: getattr(self.config, k) for k in KEYS if k not in _NO_MATTER}
        plan = config["plan"]
        config["plan"] = asdict(plan) if isinstance(plan, Plan) else str(plan)
        return {
            "strategy": self.config.strategy,
            "parameters": json.loads(json.dumps(self.parameters, default=repr)),
            "config": config,
            "match": asdict(self.match) if self.match else None,
            "rollouts": self.rollouts,
        }


@dataclass(frozen=True, slots=True)
class Ablation:
    """A whole grid. `data` are the arguments of `data.load_data` but for the folder, which is the
    one that paths are relative to. `reference` is the label of the cell that sets the budgets."""

    name: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...] = (0,)
    data: dict[str, Any] = field(default_factory=dict, hash=False)
    run: RunConfig = field(default_factory=RunConfig)
    folder: Path = Path()
    reference: str | None = None

    def cell(self, label: str) -> Cell:
        return next(cell for cell in self.cells if cell.label == label)

    def sharing(self, settings: dict[str, Any]) -> Ablation:
        """The grid with other shared settings: those that belong to the model or the machine.

        Raises ConfigError for a key that cells have of their own.
        """
        for key in settings:
            if key not in _SHARED:
                raise UnknownNameError("setting that cells share called", key, _SHARED)
        cells = [replace(c, config=replace(c.config, **settings)) for c in self.cells]
        run = replace(self.run, **settings)
        return replace(self, cells=_linked(self.cells, cells), run=run)

    def on(self, judge: str, device: str | None, dtype: str | None, model: str) -> Ablation:
        """The grid on a loaded model: "auto" becomes what it stands for there. A model that is not
        in this process has neither device nor dtype."""

        def settled(cell: Cell) -> Cell:
            own = judge if cell.config.judge == "auto" else cell.config.judge
            config = replace(cell.config, judge=own, model=model)
            if device is not None and dtype is not None:
                config = replace(config, device=device, dtype=dtype)
            return replace(cell, config=config)

        return replace(self, cells=_linked(self.cells, [settled(cell) for cell in self.cells]))


def load_ablation(path: str | Path) -> Ablation:
    """Read a grid. Raises ConfigError naming the file, the key and what is allowed."""
    path = Path(path)
    table, extended = read_extended(path, "ablation", ConfigError)
    with located(path, *extended):
        return parse_ablation(table, name=path.stem, folder=path.parent)


def parse_ablation(
    table: dict[str, Any], *, name: str, folder: Path = Path(), baselines: bool = True
) -> Ablation:
    """The grid that a parsed TOML file describes; without `baselines`, with those alone that it
    names. Raises ConfigError or UnknownNameError."""
    file = from_table(_File, {"name": name} | table)
    _known("data", file.data, _DATA)
    _known("run", file.run, [k for k in KEYS if k not in _NOT_SHARED])
    _known("match", file.match, _MATCH)
    if len(set(file.seeds)) < len(file.seeds) or not file.seeds:
        hint = "Each seed counts once: name it once." if file.seeds else "Name one at least."
        raise ConfigError(f"seeds is {shown(list(file.seeds))}.", hint)
    if not isinstance(file.cells, list) or not file.cells:
        raise ConfigError(
            "The grid is empty.", 'Write at least one [[cells]] table, such as strategy = "greedy".'
        )
    base = _config(file.run, folder)
    drafts = [draft for entry in file.cells for draft in _drafts(entry, base, folder)]
    drafts = [replace(d, rollouts=file.rollouts) if d.rollouts is None else d for d in drafts]
    named = labelled(_with_baselines(drafts, bool(file.match)) if baselines else drafts)
    if len(named) > MAX_CELLS:
        raise ConfigError(f"The grid has {len(named)} cells.", f"The limit is {MAX_CELLS}.")
    cells, reference = _matched(named, file.match)
    data = {"source": "scenes"} | file.data
    return Ablation(file.name, cells, file.seeds, data, base, folder, reference)


# --- cells ---------------------------------------------------------------------------------------


def _drafts(entry: Any, base: RunConfig, folder: Path) -> list[CellDraft]:
    """The cells of one [[cells]] table: one for each combination of its lists' values."""
    if not isinstance(entry, dict) or not isinstance(entry.get("strategy"), (str, list)):
        raise ConfigError(f"A [[cells]] table is {shown(entry)}.", 'It needs strategy = "NAME".')
    if "seed" in entry or "budget" in entry:
        key = "seed" if "seed" in entry else "budget"
        where = "seeds = [...] at the top" if key == "seed" else "the [match] table"
        raise ConfigError(f"A [[cells]] table has {key}.", f"That belongs to {where}.")
    for key in _SHARED:
        if key in entry:
            raise ConfigError(f"A [[cells]] table has {key}.", "All cells share it: see [run].")
    names = [f.name for f in fields(_Own)]
    own = from_table(_Own, {key: entry[key] for key in names if key in entry}, "cells")
    rest = {key: value for key, value in entry.items() if key not in names}
    axes = {key: value if isinstance(value, list) else [value] for key, value in rest.items()}
    for key, listed in axes.items():
        if not listed:
            raise ConfigError(f"{key} is an empty list.", "Give it a value, or leave it out.")
    varied = tuple(key for key, values in axes.items() if len(values) > 1)
    drafts = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        config = _cell_config(base, values, folder)
        draft = CellDraft(config, own.name, varied, own.matched, own.rollouts)
        if "plan" in values:
            plan = values["plan"]
            called = plan.last.tag.lower() if isinstance(plan, Plan) else Path(str(plan)).stem
            draft = replace(draft, plan=called)
        drafts.append(draft)
    return drafts


def _cell_config(base: RunConfig, values: dict[str, Any], folder: Path) -> RunConfig:
    settings = {key: value for key, value in values.items() if key in KEYS and key != "parameters"}
    parameters = {key: value for key, value in values.items() if key not in KEYS}
    parameters |= values.get("parameters", {})
    config = _config(settings | {"parameters": parameters}, folder, base)
    part_of(config)  # says what is wrong with them
    if config.judge != "auto":
        plugins.load("judge", config.judge)  # what it needs of the model, `plan_run` checks
    check_tournament(config.tournament)
    return config


def _config(values: dict[str, Any], folder: Path, base: RunConfig | None = None) -> RunConfig:
    config = replace(base or RunConfig(), **values)
    if isinstance(config.plan, Plan):
        return config
    return replace(config, plan=Plan.from_toml(folder / config.plan))


def _with_baselines(drafts: list[CellDraft], matching: bool) -> list[CellDraft]:
    """The drafts, after what every comparison needs beside it: greedy, one sample and, where
    compute is matched, a majority vote that gets the same; for each way of sampling in the grid."""
    cells = {(d.config.strategy, _way(d.config), _n(d.config), d.matched) for d in drafts}
    added: dict[tuple, CellDraft] = {}
    for draft in drafts:
        way = _way(draft.config)
        judged = {each.name: each.default for each in options_of(RunConfig, "judging")}
        plain: dict[str, Any] = {"parameters": {}} | judged
        one = replace(draft.config, strategy="best-of-n", **plain | {"parameters": {"n": 1}})
        vote = replace(draft.config, strategy="majority", **plain | {"parameters": {"n": 2}})
        greedy = replace(draft.config, strategy="greedy", **plain)
        steady = way[len(_DRAWN) :]  # a greedy answer does not depend on the rest
        if not any(s == "greedy" and w[len(_DRAWN) :] == steady for s, w, *_ in cells):
            added.setdefault(("greedy", steady), CellDraft(greedy, "greedy", _WAY))
        if ("best-of-n", way, 1, False) not in cells:
            added.setdefault(("sample", way), CellDraft(one, "one sample", _WAY))
        voting = any(s == "majority" and w == way and m for s, w, _, m in cells)
        if matching and not voting:
            added.setdefault(("vote", way), CellDraft(vote, matched=True))
    return [*(replace(d, rollouts=0, added=True) for d in added.values()), *drafts]


def _way(config: RunConfig) -> tuple:
    assert isinstance(config.plan, Plan)  # `_config` has read it
    plan = tuple(replace(stage, width=None, question="") for stage in config.plan)
    return tuple(plan if key == "plan" else getattr(config, key) for key in _WAY)


def _n(config: RunConfig) -> Any:
    return getattr(part_of(config), "n", None)


# --- budgets -------------------------------------------------------------------------------------


def _matched(
    drafts: list[tuple[str, CellDraft]], match: dict[str, Any]
) -> tuple[tuple[Cell, ...], str | None]:
    """The cells with their budgets, and the label of the reference."""
    wanted = [label for label, draft in drafts if draft.matched]
    if wanted and not match:
        raise ConfigError(
            f"{wanted[0]} is matched, but to nothing.", "Add a [match] table with a reference."
        )
    cells = {
        label: Cell(label, d.config, rollouts=d.rollouts or 0, added=d.added) for label, d in drafts
    }
    if not match:
        return tuple(cells.values()), None
    if ("reference" in match) == ("amount" in match):
        raise ConfigError(
            "[match] needs either a reference or an amount.",
            'Such as reference = "stage-beam n=4", or amount = "3e9 flops".',
        )
    label = match.get("reference")
    if label is None:
        budget = parse_budget(match["amount"])
        if "unit" in match and parse_unit(match["unit"]) != budget.unit:
            raise ConfigError(
                f"[match] has unit {shown(match['unit'])} and amount {shown(match['amount'])}.",
                "The amount names its unit itself: leave the unit out.",
            )
        goal = Matching(budget.unit, budget.amount)
    else:
        if label not in cells:
            raise UnknownNameError("cell for [match] called", str(label), cells)
        if label in wanted:
            raise ConfigError(
                f"The reference {label!r} is matched itself.", "Its n is what sets the budgets."
            )
        goal = Matching(parse_unit(match.get("unit", "flops")), None, cells[label].hash)
    for name in wanted:
        if levelled(cells[name].config) and cells[name].config.parameters.get("widths"):
            raise ConfigError(
                f"{name} is matched, and its widths are given.",
                "A matched beam gets the n that fits: leave one of the two out.",
            )
        cells[name] = replace(cells[name], config=_filling(cells[name].config), match=goal)
    return tuple(cells.values()), label


def _filling(config: RunConfig) -> RunConfig:
    """The strategy told to use its budget up, if it can, was not told otherwise, and is not given
    a larger n instead (see `matching.py`)."""
    if not has(config, "fill") or levelled(config) or "fill" in config.parameters:
        return config
    return replace(config, parameters={**config.parameters, "fill": True})


def _linked(before: tuple[Cell, ...], after: list[Cell]) -> tuple[Cell, ...]:
    """`after` with the references of matched cells renamed as their cells' hashes changed."""
    renamed = {old.hash: new.hash for old, new in zip(before, after, strict=True)}

    def linked(cell: Cell) -> Cell:
        if cell.match is None or cell.match.reference is None:
            return cell
        match = replace(cell.match, reference=renamed[cell.match.reference])
        return replace(cell, match=match)

    return tuple(linked(cell) for cell in after)


# --- checks --------------------------------------------------------------------------------------


def _known(name: str, table: dict[str, Any], known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            raise unknown(key, known, name)
