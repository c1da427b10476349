"""A table of benchmarks: which rows it has (a checkpoint and a way to search), on which benchmarks,
read from one TOML file. Each checkpoint on each benchmark is a grid, and a run, of its own; all of
them go into one store, and each row keeps the name of the weights it was made with.

    rules = "vlmevalkit-2024"        # or a table, by benchmark; else each benchmark's own

    [benchmarks]                     # what their files are called, in the folder of --data
    MMStar = "MMStar.tsv"
    MMVet = ["MMVet.tsv", "mm-vet.tsv"]

    [checkpoints]                    # "" where --checkpoint NAME=MODEL says it
    base = ""
    trained = "path/to/checkpoint"

    [match]                          # as in a grid; the forced rows get what this one spent
    unit = "tokens"
    reference = "stage-beam n=4"

    [[cells]]                        # as in a grid, and beside that:
    checkpoint = "base"              # or a list
    plain = true                     # the question alone, and all of the reply is the answer
    strategy = "best-of-n"
    n = 1

    [[cells]]
    checkpoint = "trained"
    benchmarks = ["MMVet"]           # else all
    strategy = "stage-beam"
    n = [1, 2, 4]

    [[published]]                    # what others published, to stand beside ours
    row = "trained: stage-beam n=4"
    column = "MMVet"
    value = 62.9
    source = "arXiv 2411.10440"

Two rows are forced wherever the reference is, if the file does not name them: a majority vote, and
one longer answer, each given on every problem the tokens that the reference spent there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from cot_engine.ablation.grid import Ablation, parse_ablation
from cot_engine.benchmarks.catalogue import Benchmark, benchmark
from cot_engine.benchmarks.rulesets import RULE_SETS, RuleSet, default, rule_set
from cot_engine.core.stages import DEFAULT_PLAN, LONGEST, Plan, Stage
from cot_engine.core.tables import Text, between, from_table
from cot_engine.errors import ConfigError, UnknownNameError, shown

AVERAGE = "Average"
"""The column of the mean over all benchmarks."""
PLAIN = Plan(
    (
        Stage(
            "ANSWER",
            "Answer the question.",
            "Which one answers the question better?",
            length=sum(stage.length for stage in DEFAULT_PLAN),
        ),
    )
)
"""One stage of the length of all, for models that were not trained on tags: what they write without
any is that stage."""
_LONGER = (
    8  # times what a stage may have: so that the budget ends a longer answer, and nothing else
)


@dataclass(frozen=True, slots=True)
class Published:
    """A score, in per cent, that others published for a row (its full name) and a column."""

    row: Text
    column: Text
    value: Annotated[float, between(0, 100)]
    source: Text


@dataclass(frozen=True, slots=True)
class _File:
    """What a file of a table may hold."""

    benchmarks: dict[str, Any]
    checkpoints: dict[str, Any]
    seeds: Any = (0,)
    rules: Any = ""
    run: dict[str, Any] = field(default_factory=dict)
    match: dict[str, Any] = field(default_factory=dict)
    cells: Any = ()
    published: tuple[Published, ...] = ()
    name: Any = None


@dataclass(frozen=True, slots=True)
class Column:
    """A benchmark of the table: what its file may be called, and the rules that score it."""

    benchmark: Benchmark
    files: tuple[str, ...]
    rules: RuleSet


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model of the table: the settings that open it (`model` among them, if it is known), and its
    grid on each benchmark."""

    name: str
    settings: dict[str, Any] = field(hash=False)
    grids: dict[str, Ablation] = field(hash=False)

    @property
    def rows(self) -> list[str]:
        """The names of its rows, each once."""
        cells = [cell for grid in self.grids.values() for cell in grid.cells]
        return list(dict.fromkeys(row_name(self.name, cell.label) for cell in cells))


@dataclass(frozen=True, slots=True)
class Table:
    """A whole table. `columns` and `checkpoints` by name, in its order."""

    name: str
    columns: dict[str, Column]
    checkpoints: dict[str, Checkpoint]
    published: tuple[Published, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return next(g.seeds for c in self.checkpoints.values() for g in c.grids.values())


def row_name(checkpoint: str, label: str) -> str:
    """What a row is called: who answered, and how."""
    return f"{checkpoint}: {label}"


def is_table(table: Mapping[str, Any]) -> bool:
    """Is a parsed TOML file that of a table, and not of a grid?"""
    return "benchmarks" in table


def parse_table(table: dict[str, Any], *, name: str, folder: Path = Path()) -> Table:
    """The table that a parsed TOML file describes. Raises ConfigError or UnknownNameError."""
    for key in ("checkpoints", "cells"):
        if not table.get(key):
            hint = "It needs [benchmarks], [checkpoints] and [[cells]]."
            raise ConfigError(f"The table has no {key}.", hint)
    file = from_table(_File, table)
    columns = _columns(file)
    if not isinstance(file.cells, list) or not all(isinstance(e, dict) for e in file.cells):
        raise ConfigError(f"cells is {shown(file.cells)}.", "Write [[cells]] tables.")
    own: dict[str, Any] = {key: table[key] for key in ("seeds", "run") if key in table}
    read = _Reader(file.name or name, folder, own, file.match, columns, tuple(file.checkpoints))
    checkpoints = {
        each: Checkpoint(each, _settings(each, said), read.grids(each, file.cells))
        for each, said in file.checkpoints.items()
    }
    found = Table(str(file.name or name), columns, checkpoints, file.published)
    _check_published(found)
    return found


def _columns(file: _File) -> dict[str, Column]:
    if not file.benchmarks:
        raise ConfigError("[benchmarks] is empty.", 'Name some, such as MMStar = "MMStar.tsv".')
    by_name = file.rules if isinstance(file.rules, dict) else {}
    if not isinstance(file.rules, (dict, str)):
        raise ConfigError(f"rules is {shown(file.rules)}.", "Name a set, or one by benchmark.")
    columns = {}
    for given, files in file.benchmarks.items():
        found = benchmark(given)
        names = [files] if isinstance(files, str) else files
        if not isinstance(names, list) or not names or not all(_is_name(each) for each in names):
            raise ConfigError(
                f"{given} is {shown(files)}.", "Give the name of its file, or several."
            )
        columns[found.name] = Column(found, tuple(names), _rules(found, file.rules, by_name))
    for given in by_name:
        if benchmark(given).name not in columns:
            raise UnknownNameError("benchmark in rules called", given, columns)
    return columns


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _rules(of: Benchmark, all_: Any, by_name: dict[str, Any]) -> RuleSet:
    named_ = {benchmark(key).name: value for key, value in by_name.items()}
    if of.name in named_:
        return rule_set(str(named_[of.name]), of)
    return rules_for(of, all_ if isinstance(all_, str) else "")


def rules_for(of: Benchmark, name: str = "") -> RuleSet:
    """The set of that name, or where it is "" or has none for this benchmark, the benchmark's own.
    Raises UnknownNameError."""
    if name and name not in RULE_SETS:
        raise UnknownNameError("set of rules", name, RULE_SETS)
    fits = name and of.kind in RULE_SETS[name].reads
    return rule_set(name if fits else default(of), of)


def _settings(name: str, said: Any) -> dict[str, Any]:
    """What opens a checkpoint: a model's name, or a table of [run]'s keys about models."""
    if isinstance(said, str):
        return {"model": said} if said.strip() else {}
    if isinstance(said, dict):
        return dict(said)
    raise ConfigError(f"checkpoints.{name} is {shown(said)}.", 'Give a model, or "".')


def _check_published(table: Table) -> None:
    rows = [row for each in table.checkpoints.values() for row in each.rows]
    subsets = [c.benchmark.subset.name for c in table.columns.values() if c.benchmark.subset]
    for each in table.published:
        if each.row not in rows:
            raise UnknownNameError("row in published called", each.row, rows)
        if each.column not in (*table.columns, *subsets, AVERAGE):
            known = [*table.columns, *subsets, AVERAGE]
            raise UnknownNameError("column in published called", each.column, known)


# --- its grids -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reader:
    name: str
    folder: Path
    own: dict[str, Any]
    match: dict[str, Any]
    columns: dict[str, Column]
    checkpoints: tuple[str, ...]

    def grids(self, checkpoint: str, cells: Sequence[dict[str, Any]]) -> dict[str, Ablation]:
        """A checkpoint's grid on each benchmark that any of its rows is about."""
        entries, about = [], []
        for cell in cells:
            who = _several(cell, "checkpoint", self.checkpoints)
            where = _several(cell, "benchmarks", tuple(self.columns))
            if checkpoint in who:
                entries.append(_entry(cell))
                about.append(tuple(where))
        if not entries:
            raise ConfigError(
                f"No [[cells]] table is about the checkpoint {checkpoint}.",
                f'Write checkpoint = "{checkpoint}" in one, or leave it out of [checkpoints].',
            )
        everywhere = tuple(self.columns)
        unmatched = [e for e in entries if not e.get("matched")]
        reference = self.match.get("reference")
        if self.match and unmatched:
            labels = [cell.label for cell in self._parsed(unmatched, {}).cells]
            matching = reference is None or reference in labels
            if matching:
                forced = _forced(self._plan(), entries)
                entries, about = [*entries, *forced], [*about, *[everywhere] * len(forced)]
        else:
            matching = False
        whole = self._parsed(entries, self.match if matching else {})
        places = [where for e, where in zip(entries, about, strict=True) for _ in range(_count(e))]
        grids = {}
        for column in self.columns:
            kept = tuple(c for c, at in zip(whole.cells, places, strict=True) if column in at)
            hashes = {cell.hash for cell in kept}
            kept = tuple(c for c in kept if not c.match or c.match.reference in (None, *hashes))
            if kept:
                there = whole.reference in {cell.label for cell in kept}
                grids[column] = replace(
                    *(whole,), cells=kept, reference=whole.reference if there else None
                )
        return grids

    def _parsed(self, entries: list[dict[str, Any]], match: dict[str, Any]) -> Ablation:
        table = self.own | {"cells": entries} | ({"match": match} if match else {})
        return parse_ablation(table, name=self.name, folder=self.folder, baselines=False)

    def _plan(self) -> Plan:
        plan = self.own.get("run", {}).get("plan", DEFAULT_PLAN)
        return plan if isinstance(plan, Plan) else Plan.from_toml(self.folder / plan)


def _several(cell: dict[str, Any], key: str, known: Sequence[str]) -> tuple[str, ...]:
    """The names in a cell's key, all where it has none."""
    said = cell.get(key)
    names = [said] if isinstance(said, str) else said
    if names is None and key == "benchmarks":
        return tuple(known)
    if not isinstance(names, list) or not names:
        raise ConfigError(f"A [[cells]] table has {key} = {shown(said)}.", "Name one, or a list.")
    found = []
    for each in names:
        name = benchmark(str(each)).name if key == "benchmarks" else str(each)
        if name not in known:
            raise UnknownNameError(f"{key.removesuffix('s')} of this table called", name, known)
        found.append(name)
    return tuple(found)


def _entry(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell's table without what is the table's own."""
    entry = {k: v for k, v in cell.items() if k not in ("checkpoint", "benchmarks", "plain")}
    plain = cell.get("plain", False)
    if not isinstance(plain, bool):
        raise ConfigError(f"A [[cells]] table has plain = {shown(plain)}.", "Write true or false.")
    if plain:
        for key in ("plan", "mode"):
            if key in entry:
                hint = "plain is both a plan and a mode."
                raise ConfigError(f"A [[cells]] table has plain and {key}.", hint)
        # "trained" asks the question alone, and forces no tag.
        entry |= {"plan": PLAIN, "mode": "trained"}
    return entry


def _count(entry: dict[str, Any]) -> int:
    return math.prod(len(value) for value in entry.values() if isinstance(value, list))


def _forced(plan: Plan, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What every comparison at equal tokens needs beside it, and the file does not name."""
    matched = [entry for entry in entries if entry.get("matched")]
    found: list[dict[str, Any]] = []
    if not any(entry.get("strategy") == "majority" for entry in matched):
        found.append({"strategy": "majority", "n": 2, "matched": True})
    if not any(entry.get("strategy") in ("best-of-n", "greedy") for entry in matched):
        longer = Plan(
            tuple(replace(s, length=min(LONGEST, _LONGER * s.length)) for s in plan.stages)
        )
        found.append(
            {
                **{"name": "one longer answer", "strategy": "best-of-n", "n": 1, "fill": False},
                **{"matched": True, "detail": "full", "plan": longer},
            }
        )
    return found
