"""The flags of `train` and `train-judge`. What they do is in `train.py` and `train_judge.py`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from cot_engine.cli.options import Action, Json, Quiet, Verbose, flags, option


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


@flags(
    *("model", "device", "dtype", "quantize", "adapter", "max_pixels", "mode", "plan"),
    *("temperature", "top_p", "top_k", "seed", "in_flight", "memory", "allow_url"),
    after="write_profile",
    temperature="Of the responses. [{}]",
)
def train_verifier(
    data: Annotated[str, typer.Argument(metavar="DATA", hidden=True)],
    out: Annotated[
        str, option("--out", "-o", metavar="FOLDER", help="Samples, probe and report.")
    ] = "runs/verifier",
    problems: Annotated[
        int | None, option("--problems", metavar="N", help="The first so many of DATA. [all]")
    ] = None,
    responses: Annotated[int, option("--responses", metavar="N", help="Of each question. [4]")] = 4,
    layers: Annotated[
        str | None,
        option("--layers", metavar="A,B", help="That it reads; -1 is the last. [the middle, -1]"),
    ] = None,
    write_profile: Annotated[
        bool, option("--write-profile", help="Put the probe beside the weights.")
    ] = False,
    config: Annotated[
        str | None, option("--config", metavar="FILE", help="A TOML file with options.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **options: Any,
) -> Action:
    """Fit a probe: a verifier that reads the model's own states.

    Samples responses to the questions of DATA (a .jsonl or .tsv with answers, or scenes/val),
    labels them by the answers, and fits a linear layer for each stage and the whole, on the states
    that the model had while it wrote. Measured on questions of their own. The same command goes
    on where it stopped.
    """
    from cot_engine.cli.train_verifier import run

    what = partial(run, data, out, problems, responses, layers, write_profile, config, options)
    return partial(what, json=json, quiet=quiet)
