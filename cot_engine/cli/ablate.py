"""`cot-engine ablate`: read the grid and the data, load the model, do what the store lacks."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot_engine.errors import AblationFailed, ConfigError
from cot_engine.files.locking import held
from cot_engine.files.outputs import check_outputs, side_files

if TYPE_CHECKING:
    from cot_engine.ablation.grid import Ablation
    from cot_engine.ablation.records import ResultRow
    from cot_engine.ablation.runner import Work
    from cot_engine.ablation.store import Store
    from cot_engine.ablation.table import Table
    from cot_engine.cli.ablate_table import Flags
    from cot_engine.cli.progress import LongWork
    from cot_engine.engine.facade import Engine
    from cot_engine.questions.data import DataSet

PRESETS = Path(__file__).parent.parent / "ablation" / "presets"


def run(
    config: str,
    store: str | None,
    problems: int | None,
    flags: dict[str, Any],
    of_table: Flags,
    *,
    workers: str,
    ray_address: str | None,
    wait: bool,
    retry: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    from cot_engine.ablation.data import read_data
    from cot_engine.ablation.grid import Ablation
    from cot_engine.ablation.store import Store
    from cot_engine.engine.facade import model_path
    from cot_engine.questions.data import check_n

    if workers not in ("local", "ray"):
        raise ConfigError(f"workers is {workers!r}.", "It must be local or ray.")
    check_n(problems, "problems")
    ablation = _read(config)
    if not isinstance(ablation, Ablation):
        from cot_engine.cli.ablate_table import run_table

        search = partial(
            _searched, workers=workers, ray_address=ray_address, retry=retry, quiet=quiet
        )
        more: dict[str, Any] = {"search": search, "wait": wait, "dry_run": dry_run, "quiet": quiet}
        run_table(ablation, config, store, problems, flags, of_table, **more)
        return
    of_table.refuse(config)
    if flags:
        ablation = ablation.sharing(flags)
    path = Path(store or f"{ablation.name}.sqlite")
    data_file = ("the data", ablation.folder / str(ablation.data["source"]))
    model = ("the model", model_path(ablation.run.model))
    for _, written in side_files(path):
        check_outputs([("--store", written)], [("the grid", config), data_file, model])

    def tell(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    def read() -> DataSet:
        n = {"n": problems} if problems is not None else {}
        given = {**ablation.data, **n, "folder": ablation.folder}
        data = read_data(**given, allow_url=ablation.run.allow_url)
        for note in data.notes:
            tell(f"Note: {note}")
        return data

    if dry_run:
        _dry_run(ablation, read())
        return
    hint = "Wait for it to end (--wait does), stop it, or use another --store."
    lock = held(path, "the store", hint, wait=wait, tell=tell)
    with lock, Store(path, create=True) as opened:
        data = read()
        tell(f"Loading {ablation.run.model}")
        work = _run(ablation, data, opened, workers, ray_address, retry, quiet)
        failed = _print_result(opened, work)
    if failed:
        raise AblationFailed(
            failed,
            f"The same command tries them again; cot-engine report {shlex.quote(str(path))} names"
            " them all.",
        )


def _dry_run(ablation: Ablation, data: DataSet) -> None:
    from cot_engine.backends.local.needs import PICTURE
    from cot_engine.cli.needs import dry_run

    options = {
        "searches": len(ablation.cells) * len(data.items) * len(ablation.seeds),
        "problems": len(data.items),
        "seeds": list(ablation.seeds),
        "cells": [cell.label for cell in ablation.cells],
        "in_flight": ablation.run.in_flight,
    }
    dry_run(ablation.run, options, [PICTURE], False)


def _read(config: str) -> Ablation | Table:
    """The grid or the table of a file, or of a preset by its name."""
    from cot_engine.ablation.grid import parse_ablation
    from cot_engine.ablation.table import is_table, parse_table
    from cot_engine.core.tables import located
    from cot_engine.files.reading import read_extended

    path = Path(config)
    preset = PRESETS / f"{config}.toml"
    if not path.suffix and not os.path.exists(path):
        if not os.path.isfile(preset):
            known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
            raise ConfigError(
                f"There is no file {config!r}, and no preset of that name.",
                f"Give a TOML file, or one of: {known}.",
            )
        path = preset
    table, extended = read_extended(path, "ablation", ConfigError)
    with located(path, *extended):
        parse = parse_table if is_table(table) else parse_ablation
        return parse(table, name=path.stem, folder=path.parent)


def _run(
    ablation: Ablation,
    data: DataSet,
    store: Store,
    workers: str,
    ray_address: str | None,
    retry: bool,
    quiet: bool,
) -> Work:
    from cot_engine.ablation.runner import plan_run
    from cot_engine.engine.facade import Engine

    with Engine.from_pretrained(**ablation.run.of_engine) as engine:
        work = plan_run(ablation, data, engine, "cot-engine " + shlex.join(sys.argv[1:]))
        how: dict[str, Any] = {
            "workers": workers,
            "ray_address": ray_address,
            "retry": retry,
            "quiet": quiet,
        }
        _searched(engine, work, store, ablation.run.in_flight, **how)
    return work


def _searched(
    engine: Engine,
    work: Work,
    store: Store,
    in_flight: int,
    *,
    workers: str,
    ray_address: str | None,
    retry: bool,
    quiet: bool,
) -> None:
    """Do what the store lacks of a run, watched. With Ray the engine is closed: the workers load
    their own, on what may be the same GPU."""
    from cot_engine.ablation.runner import ablate, run_local
    from cot_engine.cli.progress import LongWork

    labels = {digest: label for digest, (label, _) in work.run.cells.items()}
    each = len(work.run.items) * len(work.run.seeds)
    with LongWork(dict.fromkeys(labels.values(), each), quiet=quiet) as progress:
        store.begin(work.run)
        _had(store, work, labels, progress, retry)
        in_flight = 1 if work.one_at_a_time else in_flight
        if workers == "ray":
            from cot_engine.ablation.ray_workers import run_ray

            engine.close()
            execute: Callable = partial(run_ray, work, address=ray_address, in_flight=in_flight)
        else:
            execute = partial(run_local, engine, in_flight=in_flight)

        def on_row(row: ResultRow) -> None:
            flops = sum(used.flops for used in row.usage.values())
            unknown = row.correct is None or math.isnan(row.correct)
            score = None if unknown else row.correct
            progress.row(labels[row.key.cell], score, flops, row.status == "failed")

        ablate(work, store, execute, on_row=on_row, retry=retry)


def _had(store: Store, work: Work, labels: dict[str, str], progress: LongWork, retry: bool) -> None:
    """Tell the display what is there already."""
    before = 0
    for row in store.rows(work.run):
        if row.status == "ok" or not retry:
            progress.had(labels[row.key.cell], [row.correct])
            before += 1
    if before:
        progress.say(f"{before:,} searches were there already.")


def _print_result(store: Store, work: Work) -> str:
    """The table on stdout; what failed, in words."""
    from cot_engine.ablation.runner import told
    from cot_engine.report.analysis import analyse
    from cot_engine.report.text import summary

    print(summary(analyse(store, work.run, cards=False)))
    return told(work.run, store.rows(work.run))
