"""`cot-engine train-judge`: read the configuration, train, measure, show what came of it."""

from __future__ import annotations

import json
import os
import shlex
from typing import Any

from cot_engine.cli.train import Show
from cot_engine.errors import ConfigError
from cot_engine.escape import terminal
from cot_engine.training.clock import duration


def run(
    config: str,
    settings: list[str],
    *,
    minutes: float | None,
    restart: bool,
    pairs_only: bool,
    measure: bool,
    json: bool,
    quiet: bool,
) -> None:
    from cot_engine.training.judge_config import load_judge_config

    if minutes is not None and minutes <= 0:
        raise ConfigError(f"--minutes is {minutes:g}.", "It must be more than 0.")
    read = load_judge_config(config, settings)
    from cot_engine.training.judge_run import train_judge

    first = int(os.environ.get("RANK", 0)) == 0
    with JudgeShow(quiet=quiet or not first) as shown:
        outcome = train_judge(
            read,
            minutes=minutes,
            restart=restart,
            pairs_only=pairs_only,
            measure=measure,
            tell=shown.say,
            show=shown.row,
            step=shown.step,
        )
    if first:
        _print(outcome, config, json)
    if outcome.stopped == "interrupted":
        raise KeyboardInterrupt("Stopped, with a checkpoint: the same command goes on from there.")


class JudgeShow(Show):
    """As of `train`; a measurement on held-out pairs is a line of its own."""

    def row(self, row: dict[str, Any]) -> None:
        if "held_out_loss" not in row:
            super().row(row)
            return
        self.held = f", held-out loss {row['held_out_loss']:.4f}"
        stages = [k.removeprefix("judge_right_") for k in row if k.startswith("judge_right_")]
        parts = [
            f"{at} {row[f'judge_right_{at}']:.3f} right, {row[f'judge_flips_{at}']:.3f} flipped"
            for at in stages
        ]
        self.say(f"Step {row['step']:,}: held-out pairs: {'; '.join(parts)}")


def _print(outcome: Any, config: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(outcome.plain()))
        return
    if outcome.training is not None:
        training = outcome.training
        print(
            terminal(
                f"{training.step:,} of {training.steps:,} steps in {duration(training.seconds)}, "
                f"on {outcome.pairs:,} pairs"
            )
        )
    else:
        print(terminal(f"{outcome.pairs:,} pairs are in {outcome.output / 'pairs.jsonl'}"))
    if outcome.report is not None:
        _table(outcome.report)
    if outcome.training is not None and outcome.training.model is not None:
        print(f"The model is in {terminal(str(outcome.training.model))}")
    elif outcome.stopped != "interrupted":
        print(f"Go on with: cot-engine train-judge {terminal(shlex.quote(config))}")


def _table(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for k, name in enumerate(
        ("stage", "pairs", "before", "after", "likelihood", "after - likelihood", "flips", "first")
    ):
        table.add_column(name, justify="left" if k == 0 else "right")
    for stage in report.stages:
        flips = "-" if stage.after.flips is None else f"{stage.after.flips:.3f}"
        difference = stage.over_likelihood.difference
        table.add_row(
            Text(terminal(stage.stage)),
            f"{stage.after.pairs:,}",
            _interval(stage.before.leaning),
            _interval(stage.after.leaning),
            _interval(stage.likelihood.leaning),
            f"{difference.estimate:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})",
            flips,
            f"{stage.after.first.estimate:+.3f}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "Held-out pairs with different outcomes; the share whose margin, the mean of both orders, "
        "leans to the better one, with its 95 % interval over problems. flips: both orders name "
        "the same place; first: how much more than half the time that is the first.",
        style="dim",
    )
    if report.answers_cost is not None:
        before, after, cost = report.answers_before, report.answers_after, report.answers_cost
        d = cost.difference
        print(
            f"Greedy answers: {before.estimate:.3f} before, {after.estimate:.3f} after, "
            f"{d.estimate:+.3f} ({d.low:+.3f} to {d.high:+.3f}), {cost.problems:,} problems"
        )
    if report.weight is not None:
        print(f"self+likelihood: weight {report.weight:.3g}, kept with the model")
    for note in report.notes:
        print(terminal(f"Note: {note}"))


def _interval(value: Any) -> str:
    return f"{value.estimate:.3f} ({value.low:.3f} to {value.high:.3f})"
