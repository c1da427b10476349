"""What of a table can be run: by the files and the models that are there, the rest being named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cot_engine.ablation.grid import Ablation
from cot_engine.ablation.table import Table, rules_for
from cot_engine.benchmarks.catalogue import benchmark
from cot_engine.errors import ConfigError, UnknownNameError, shown
from cot_engine.files.reading import named


@dataclass(frozen=True, slots=True)
class Chosen:
    """What of a table the given files and models allow: `files` by column, `grids` by checkpoint
    and column, each with its model; and in sentences what is left out."""

    table: Table
    files: dict[str, Path]
    grids: dict[str, dict[str, Ablation]]
    left_out: tuple[str, ...]


def choose(
    table: Table,
    data: Sequence[str],
    checkpoints: Sequence[str],
    settings: Mapping[str, Any],
) -> Chosen:
    """`data` are folders, or BENCHMARK=FILE; `checkpoints` are NAME=MODEL; `settings` are those
    that all share. Raises ConfigError for what is none of these, or where nothing is left."""
    files, left_out = _files(table, data)
    models = _models(table, checkpoints)
    grids: dict[str, dict[str, Ablation]] = {}
    for name, each in table.checkpoints.items():
        own = each.settings | models.get(name, {})
        if "model" not in own:
            rows = ", ".join(each.rows)
            said = f"There is no checkpoint {name} (--checkpoint {name}=MODEL): without {rows}."
            left_out.append(said)
            continue
        there = {
            column: replace(grid.sharing(dict(settings) | own), folder=files[column].parent)
            for column, grid in each.grids.items()
            if column in files
        }
        if there:
            grids[name] = there
    if not grids:
        raise ConfigError(f"Nothing of the table {table.name} can be run.", " ".join(left_out))
    return Chosen(table, files, grids, tuple(left_out))


def _files(table: Table, data: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    own: dict[str, Path] = {}
    folders = []
    for each in data:
        name, equals, file = each.partition("=")
        if not equals or Path(each).exists():
            if not Path(each).is_dir():
                hint = "Name a folder with the benchmarks' files, or BENCHMARK=FILE."
                raise ConfigError(f"--data {named(each)} is no folder.", hint)
            folders.append(Path(each))
            continue
        found = benchmark(name).name
        if found not in table.columns:
            raise UnknownNameError("benchmark of this table called", name, table.columns)
        if not Path(file).is_file():
            raise ConfigError(f"--data {found}: there is no file {named(file)}.", "Check its name.")
        own[found] = Path(file)
    files, left_out = {}, []
    for name, column in table.columns.items():
        there = [f / file for f in folders for file in column.files if (f / file).is_file()]
        if name in own or there:
            files[name] = own.get(name) or there[0]
            continue
        where = f"in {', '.join(map(named, folders))}" if folders else "named by --data"
        none = " or ".join(column.files)
        left_out.append(f"{name} is left out: there is no {none} {where}.")
    return files, left_out


def _models(table: Table, checkpoints: Sequence[str]) -> dict[str, dict[str, Any]]:
    models = {}
    for each in checkpoints:
        name, equals, model = each.partition("=")
        if not equals or not model.strip():
            known = ", ".join(table.checkpoints)
            hint = f"Write NAME=MODEL, NAME being one of {known}."
            raise ConfigError(f"--checkpoint is {shown(each)}.", hint)
        if name not in table.checkpoints:
            raise UnknownNameError("checkpoint of this table called", name, table.checkpoints)
        if name in models:
            raise ConfigError(f"There are two models for the checkpoint {name}.", "Name one.")
        models[name] = {"model": model}
    return models


def with_rules(table: Table, name: str) -> Table:
    """The table scored by another set of rules, wherever it has some. Raises UnknownNameError."""
    columns = {
        key: replace(column, rules=rules_for(column.benchmark, name))
        for key, column in table.columns.items()
    }
    return replace(table, columns=columns)
