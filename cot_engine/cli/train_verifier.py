"""`cot-engine train-verifier`: sample, fit, measure, and show what the probe is worth."""

from __future__ import annotations

import json as _json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot_engine.errors import ConfigError
from cot_engine.escape import terminal
from cot_engine.files.locking import held
from cot_engine.files.outputs import check_outputs
from cot_engine.options.config import MAX_N
from cot_engine.options.layers import files_of, load_config

if TYPE_CHECKING:
    from cot_engine.statistics import Interval, Paired
    from cot_engine.training.probe_run import Outcome


def run(
    source: str,
    out: str,
    problems: int | None,
    n: int,
    layers: str | None,
    write_profile: bool,
    config_file: str | None,
    flags: dict[str, Any],
    *,
    json: bool,
    quiet: bool,
) -> None:
    from cot_engine.cli.progress import LongWork
    from cot_engine.engine.facade import model_path, profile_path
    from cot_engine.judging.profile import check_profile_folder
    from cot_engine.questions.data import check_n, load_data

    check_n(problems, "problems")
    if not 2 <= n <= MAX_N:
        raise ConfigError(f"responses is {n}.", f"It must be from 2 to {MAX_N:,}.")
    chosen = _layers(layers)
    config = load_config(config_file, os.environ, flags)
    read = [("the data", source), ("the model", model_path(config.model))]
    check_outputs([("--out", out)], [*read, *files_of(config_file, os.environ, flags)])
    if write_profile:
        check_profile_folder(profile_path(config.model))
    data = load_data(source, n=problems, seed=config.seed, allow_url=config.allow_url)
    from cot_engine.training.probe_run import train_verifier

    with LongWork({"responses": len(data.items)}, noun="problems", quiet=quiet) as progress:
        for note in data.notes:
            progress.say(note)
        progress.say(f"Loading {config.model}")

        def on_done(index: int, error: str) -> None:
            progress.row("responses", None, 0, bool(error))

        progress.starting()
        hint = "Wait for it to end, stop it, or use another --out."
        try:
            with held(Path(out) / "samples.json", "the samples", hint):
                outcome = train_verifier(
                    config,
                    data,
                    Path(out),
                    n=n,
                    layers=chosen,
                    write_profile=write_profile,
                    on_done=on_done,
                    on_notice=progress.say,
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Stopped: the same command goes on from there.") from None
    if json:
        print(_json.dumps(outcome.plain()))
    else:
        _show(outcome)


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(dict.fromkeys(int(each) for each in text.split(",")))
    except ValueError:
        raise ConfigError(
            f"layers is {text!r}.", "Give numbers with commas between, such as 16,-1."
        ) from None


def _show(outcome: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table

    console, measured = Console(highlight=False), outcome.measured
    table = Table(box=None, pad_edge=False)
    for k, name in enumerate(("responses", "majority", "weighted", "gain", "best", "oracle")):
        table.add_column(name, justify="left" if k == 0 else "right")
    for row in measured.votes:
        table.add_row(
            str(row.n),
            *(_interval(row.majority), _interval(row.vote), _gain(row.difference)),
            *(_interval(row.best), _interval(row.oracle)),
        )
    console.print(table)
    table = Table(box=None, pad_edge=False)
    for k, name in enumerate(("pairs of", "pairs", "probe", "likelihood", "probe - likelihood")):
        table.add_column(name, justify="left" if k == 0 else "right")
    for pair in measured.pairs:
        both = _interval(pair.probe), _interval(pair.likelihood)
        table.add_row(terminal(pair.stage), f"{pair.pairs:,}", *both, _gain(pair.difference))
    console.print()
    console.print(table)
    if measured.stops:
        table = Table(box=None, pad_edge=False)
        for k, name in enumerate(("stop", "responses", "accuracy", "against all")):
            table.add_column(name, justify="left" if k == 0 else "right")
        for stop in measured.stops:
            at = "none" if stop.policy.stop is None else f"{stop.policy.stop:g}"
            table.add_row(
                *(at, f"{stop.responses:.2f}"),
                *(_interval(stop.accuracy), _gain(stop.difference)),
            )
        console.print()
        console.print(table)
    if outcome.auto:
        table = Table(box=None, pad_edge=False)
        for k, name in enumerate(("samples up to", "auto", "cost", "accuracy")):
            table.add_column(name, justify="right" if k == 2 else "left")
        for each in outcome.auto:
            own = [f"{key}={value}" for key, value in each.row.parameters.items()]
            how = " ".join([each.row.strategy, *own])
            table.add_row(
                f"{each.row.upto:g}", how, f"{each.samples:.2f}", _interval(each.accuracy)
            )
        console.print()
        console.print(table)
    console.print(
        f"On {measured.problems:,} problems that it was not fitted on, 95 % intervals over them. "
        "weighted: a vote weighted by the probe; best: the response it finds likeliest right; "
        "stop: the share at which a weighted vote ends; auto: what pays at a budget of so many "
        "samples a question, and its mean cost in samples; "
        "pairs: candidates of one problem with different outcomes, the share it gets right. "
        f"Mean loss {measured.loss:.3f} nats; of their share alone, {measured.base:.3f}.",
        style="dim",
    )
    for note in outcome.notes:
        print(terminal(f"Note: {note}"))
    if outcome.failed:
        name, why = next(iter(outcome.failed.items()))
        print(terminal(f"Note: {len(outcome.failed):,} problems failed, {name} first: {why}"))
    where = outcome.path if outcome.profile is None else outcome.profile.parent
    print(f"The probe is in {terminal(str(where))}")


def _interval(value: Interval) -> str:
    return f"{value.estimate:.3f} ({value.low:.3f} to {value.high:.3f})"


def _gain(value: Paired) -> str:
    d = value.difference
    return f"{d.estimate:+.3f} ({d.low:+.3f} to {d.high:+.3f})"
