"""The value that holds all options of a call, and checks them: RunConfig.

It is plain and frozen and does no input or output; `layers.py` reads one from files, the
environment and flags, `resolve.py` makes parts of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from cot_engine.backends.local.amount import SHARE, check_pixels, parse_memory
from cot_engine.backends.local.devices import device_list
from cot_engine.core.options import (
    Group,
    OneOf,
    SearchOptions,
    about,
    number,
    option,
    options_of,
    text,
)
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.core.stages import Detail as Detail  # what it inherits is annotated with it
from cot_engine.errors import ConfigError, shown
from cot_engine.images.download import AllowUrl

MAX_N = 1024
"""The most candidates of one selection, and the most searches in flight."""
SHORT = ("n", "keep")
"""Parameters of a strategy that a layer may also give beside the others."""


def _device(name: str, value: Any) -> None:
    text(name, value)
    device_list(value)


def _plan(name: str, value: Any) -> None:
    if not isinstance(value, (Plan, str, Path)):
        raise ConfigError(f"{name} is {shown(value)}.", "Give a Plan or the path of a TOML file.")


def _budget(name: str, value: Any) -> None:
    if value is not None:
        text(name, value)


def _folder(name: str, value: Any) -> None:
    if value is not None:
        text(name, value)


def _share(name: str, value: Any) -> None:
    number(0, 1)(name, value)
    if value == 0:
        raise ConfigError(f"{name} is 0.", "It must be more than 0 and at most 1 (1: off).")


def _memory(name: str, value: Any) -> None:
    parse_memory(value)


def _max_pixels(name: str, value: Any) -> None:
    check_pixels(value)


def _allow_url(name: str, value: Any) -> None:
    if not isinstance(value, bool) and value != "inner":
        raise ConfigError(f"{name} is {shown(value)}.", 'It must be true, false or "inner".')


def _parameters(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is {shown(value)}.", "Give names with values.")
    for key in SHORT:  # of every strategy that has them
        if key in value:
            number(1, MAX_N, whole=True)(key, value[key])


@dataclass(frozen=True, slots=True)
class RunConfig(SearchOptions):
    """Everything that decides how a question is answered, but the question and the images.

    `parameters` are those of the strategy (its dataclass fields, such as n and keep); `plan` is a
    Plan or the path of a TOML file with one; `budget` is an amount and a unit (see `parse_budget`).
    Raises ConfigError for a value of the wrong type or out of range.
    """

    strategy: str = option("stage-beam", "search", text, "How to search. [{}]", "NAME", short="-s")
    parameters: dict[str, Any] = option(
        *({}, "search", _parameters, "Any parameter of the strategy.", "NAME=VALUE")
    )
    budget: str | None = option(
        *(None, "search", _budget),
        *('What may be spent: "2e12 flops", "500 new tokens", "30 s" ...', "AMOUNT"),
    )
    judge: str = option(
        "auto", "judging", text, "Who compares candidates. [{}]", "NAME", label="judge={}"
    )
    model: str = option(
        "bundled", "model", text, "A folder, a hub name or a URL. [{}]", "NAME", short="-m"
    )
    device: str = option(
        "auto", "model", _device, "auto, cuda, cuda:N, mps, cpu; several: A,B.", "NAME"
    )
    dtype: str = option(
        *("auto", "model", OneOf("auto", "float32", "bfloat16", "float16")),
        *("auto, float32, bfloat16 or float16.", "NAME"),
    )
    quantize: Literal["8bit", "4bit"] | None = option(
        None, "model", OneOf(None, "8bit", "4bit"), "Smaller weights, by bitsandbytes."
    )
    adapter: str | None = option(
        None, "model", _folder, "A LoRA (PEFT) to merge into the weights.", "FOLDER"
    )
    max_pixels: int | None = option(
        *(None, "model", _max_pixels),
        *("Pixels (width x height) that are shown of a picture, at most.", "N"),
    )
    probe: str = option(
        *("auto", "model", text),
        *("What reads the model's states: auto (its profile's), none, or a file. [{}]", "FILE"),
    )
    mode: Literal["auto", "trained", "prompted"] = option(
        *("auto", "writing", OneOf("auto", "trained", "prompted")),
        "Whether the model knows the tags. [{}]",
        label="{}",
    )
    plan: Plan | str | Path = option(
        DEFAULT_PLAN, "writing", _plan, "A TOML file with other stages.", "FILE"
    )
    temperature: float = option(
        0.6, "sampling", number(0, 100), "0 is greedy. [{}]", "X", short="-t", label="T={:g}"
    )
    top_p: float = option(0.9, "sampling", _share, "1 is off. [{}]", "X", label="top-p={:g}")
    top_k: int = option(
        50, "sampling", number(0, 1_000_000, whole=True), "0 is off. [{}]", "N", label="top-k={}"
    )
    in_flight: int = option(
        32, "running", number(1, MAX_N, whole=True), "Searches at a time. [{}]", "N"
    )
    memory: float | str = option(
        *(SHARE, "running", _memory),
        *("What keys and values may take: a share of what is free, or bytes. [{}]", "AMOUNT"),
    )
    allow_url: AllowUrl = option(False, "reading", _allow_url, "Read pictures from http(s).")

    def __post_init__(self) -> None:
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))  # part of the hash, as a text
        if isinstance(self.adapter, Path):
            object.__setattr__(self, "adapter", str(self.adapter))
        for each in fields(self):
            about(each).check(each.name, getattr(self, each.name))

    @property
    def of_engine(self) -> dict[str, Any]:
        """The options that an engine is made with (`Engine.from_pretrained`)."""
        return {key: getattr(self, key) for key in ENGINE}

    def hash(self) -> str:
        """16 hex digits that are equal for equal configurations, in any process and version of
        Python. A plan given as a path counts as that path."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plan = values["plan"]
        values["plan"] = asdict(plan) if isinstance(plan, Plan) else str(plan)
        text = json.dumps(values, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def keys_of(*groups: Group) -> tuple[str, ...]:
    """The names of the options of these groups."""
    return tuple(each.name for each in options_of(RunConfig, *groups))


KEYS = tuple(f.name for f in fields(RunConfig))
ENGINE = keys_of("model", "running")
"""Options that an engine is made with: a call cannot change them."""
