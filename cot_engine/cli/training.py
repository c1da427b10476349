"""The flags of `train` and `train-judge`. What they do is in `train.py` and `train_judge.py`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from cot_engine.cli.options import Action, Quiet, Verbose, option


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG.toml", hidden=True)],
    format: Annotated[
        str | None,
        option("--format", metavar="staged|no-tags|direct", help="What is learnt. [the file's]"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        option("--set", metavar="KEY=VALUE", help="Of the file: train.steps=100. Repeatable."),
    ] = None,
    minutes: Annotated[
        float | None,
        option("--minutes", metavar="N", help="Stop then, with a checkpoint to go on from."),
    ] = None,
    resume: Annotated[bool, option("--resume", help="Fail if there is no checkpoint.")] = False,
    restart: Annotated[bool, option("--restart", help="Throw old checkpoints away.")] = False,
    json: Annotated[bool, option("--json", help="Print the outcome as JSON.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Action:
    """Fine-tune a model to reason in stages: all weights, LoRA or QLoRA.

    The same command goes on from the newest checkpoint. On several GPUs: accelerate launch -m
    cot_engine train CONFIG.toml.
    """
    from cot_engine.cli.train import run

    more: dict[str, Any] = {"minutes": minutes, "resume": resume, "restart": restart, "json": json}
    return partial(run, config, format, set_ or [], **more, quiet=quiet)


def train_judge(
    config: Annotated[str, typer.Argument(metavar="CONFIG.toml", hidden=True)],
    set_: Annotated[
        list[str] | None,
        option("--set", metavar="KEY=VALUE", help="Of the file: judge.marks=2. Repeatable."),
    ] = None,
    minutes: Annotated[
        float | None,
        option("--minutes", metavar="N", help="Stop then, to go on with the same command."),
    ] = None,
    pairs_only: Annotated[
        bool, option("--pairs-only", help="Stop when the pairs are sampled.")
    ] = False,
    measure: Annotated[
        bool, option("--measure/--no-measure", help="Measure before and after. [measure]")
    ] = True,
    restart: Annotated[
        bool, option("--restart", help="Throw old checkpoints away; the pairs stay.")
    ] = False,
    json: Annotated[bool, option("--json", help="Print the outcome as JSON.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Action:
    """Train a model to judge pairs of its own candidates.

    Samples candidates, labels them by the truth, learns the verdict in both orders, and measures
    it on held-out problems before and after. The same command goes on where it stopped.
    """
    from cot_engine.cli.train_judge import run

    more: dict[str, Any] = {"minutes": minutes, "restart": restart}
    more |= {"pairs_only": pairs_only, "measure": measure}
    return partial(run, config, set_ or [], **more, json=json, quiet=quiet)
