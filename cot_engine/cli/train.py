"""`cot-engine train`: read the configuration, train, show how it goes, say what to do next."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from cot_engine.errors import ConfigError
from cot_engine.escape import terminal
from cot_engine.training.clock import duration

if TYPE_CHECKING:
    from rich.status import Status


def run(
    config: str,
    format: str | None,
    settings: list[str],
    *,
    minutes: float | None,
    resume: bool,
    restart: bool,
    json: bool,
    quiet: bool,
) -> None:
    from cot_engine.training.sft_config import load_config

    if resume and restart:
        raise ConfigError("--resume and --restart exclude each other.", "Give one of them.")
    if minutes is not None and minutes <= 0:
        raise ConfigError(f"--minutes is {minutes:g}.", "It must be more than 0.")
    read = load_config(config, settings, format=format)
    from cot_engine.training.sft import train

    first = int(os.environ.get("RANK", 0)) == 0
    with Show(quiet=quiet or not first) as shown:
        outcome = train(
            read,
            minutes=minutes,
            resume=resume,
            restart=restart,
            tell=shown.say,
            show=shown.row,
            step=shown.step,
        )
    if first:
        _print(outcome, config, json)
    if outcome.stopped == "interrupted":
        raise KeyboardInterrupt(
            f"Stopped at step {outcome.step:,} of {outcome.steps:,}, with a checkpoint: the same "
            "command goes on from there."
        )


def _print(outcome: Any, config: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(outcome.plain()))
        return
    took = duration(outcome.seconds)
    done = f"{outcome.step:,} of {outcome.steps:,} steps in {took}"
    losses = [f"loss {outcome.loss:.4f}"] if outcome.loss is not None else []
    if outcome.held_out_loss is not None:
        losses.append(f"held-out loss {outcome.held_out_loss:.4f}")
    print(terminal(", ".join([done, *losses])))
    if outcome.model is not None:
        print(f"The model is in {terminal(str(outcome.model))}")
    elif outcome.step >= outcome.steps:
        print(f"The adapter is in {terminal(str(outcome.output / 'adapter'))}")
    else:
        print(f"Go on with: cot-engine train {terminal(shlex.quote(config))}")


class Show:
    """How a training goes, on stderr: one line that changes where that is a terminal, and a line
    now and then, ten seconds apart at least, where it is not."""

    EVERY = 10.0

    def __init__(self, *, quiet: bool) -> None:
        self.quiet, self.held, self.said = quiet, "", 0.0
        self.status: Status | None = None
        self.last = ""  # what is known of the loss

    def __enter__(self) -> Show:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        if not self.quiet and self.console.is_terminal and not self.console.is_dumb_terminal:
            self.status = self.console.status("Loading")
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is not None:
            with contextlib.suppress(OSError, ValueError):
                self.status.stop()

    def say(self, text: str) -> None:
        if self.quiet:
            return
        with contextlib.suppress(OSError, ValueError):  # nobody is listening
            if self.status is not None:
                self.console.print(terminal(text), markup=False)
            else:
                print(terminal(text), file=sys.stderr, flush=True)

    def row(self, row: dict[str, Any]) -> None:
        """A row of log.jsonl."""
        if "held_out_loss" in row:
            self.held = f", held-out loss {row['held_out_loss']:.4f}"
            return
        self.last = (
            f": loss {row['loss']:.4f}{self.held}, {row['examples_per_second']:,.1f} examples/s, "
            f"{duration(row['seconds'])} so far"
        )
        self.step(row["step"], row["progress"])

    def step(self, _: int, progress: str) -> None:
        """How far it is: a step was made."""
        text = f"Step {progress}{self.last}"
        if self.status is not None:
            self.status.update(terminal(text))
        elif time.monotonic() - self.said >= self.EVERY:
            self.said = time.monotonic()
            self.say(text)
