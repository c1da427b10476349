"""A probe: a linear layer that reads from the model's own states whether what it wrote is right.

It is a safetensors file of a few kB beside the weights, named in the model's profile. A head for
each stage says, where that is closed, how likely it is sound; the head "whole" says of a finished
response how likely its answer is right. Each is logistic in

- "end": what the layers held where the stage was closed ("whole": at each closing, "end:CAPTION"),
- "mean": the mean of what they held over the stage (over the response),
- "likelihood": the mean log-probability (nats) of its tokens,
- "claims": the log-probability that each claim of the stage is true, summed, which a linear layer
  of its own ("claim") reads from the states where the claims end.

The states are those of the places of a `Generation`: nothing is computed again. Fitted by
`cot-engine train-verifier`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cot_engine.core.chain import Chain
from cot_engine.core.plain import reader
from cot_engine.core.requests import States
from cot_engine.core.stages import Plan
from cot_engine.errors import ConfigError, InputError, said, shown
from cot_engine.files.reading import named, opened, parse_json
from cot_engine.judging.protocol import Ask, Case
from cot_engine.judging.states import Held, Stretch

if TYPE_CHECKING:
    import numpy as np

WHOLE = "whole"
"""The head that is about a whole response."""

SCHEMA = "probe-1"
_FIT = "Fit one on these: cot-engine train-verifier QUESTIONS --model FOLDER."
LARGEST = 1e12
"""The largest number in a file, either way: products and sums of such stay finite."""
MAX_BYTES = 1 << 30
"""Of a file: a hundred times what a probe of two layers of the widest models takes."""


@dataclass(frozen=True)
class Head:
    """One logistic layer: the weights of each block (a vector, or one number), the bias, and what a
    block counts that is not there: its mean, times its weights."""

    bias: float
    weights: Mapping[str, np.ndarray]
    absent: Mapping[str, float] = field(default_factory=dict)

    def logit(self, blocks: Mapping[str, Any]) -> float:
        """What it says of these values."""
        total = self.bias
        for name, weights in self.weights.items():
            value = blocks.get(name)
            if value is None:
                total += self.absent.get(name, 0.0)
            else:
                total += float((weights * value).sum())
        return total


@dataclass(frozen=True)
class Probe:
    """The heads, by stage and "whole", and for claims "claim:CAPTION"; which `layers` of a model
    whose states are `width` wide they read; by stage the string that ends a claim in it; and the
    `digest` of the weights that they were fitted on."""

    layers: tuple[int, ...]
    width: int
    heads: Mapping[str, Head]
    marks: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""

    def states(self, plan: Plan) -> States:
        """What is to be asked of the model with whatever it writes for a problem of this plan."""
        closes = [stage.close for stage in plan]
        inside = [self.marks[stage.tag] for stage in plan if stage.tag in self.marks]
        return States(self.layers, tuple(dict.fromkeys([*closes, *inside])))

    def stage(self, stretch: Stretch) -> float | None:
        """The logit that a stage, or so much of it, is sound; None where no head reads it. Raises
        InputError for states of another width."""
        head = self.heads.get(stretch.tag)
        self._check(len(stretch.end))
        if head is None:
            return None
        claim = self.heads.get(f"claim:{stretch.tag}")
        claims = None
        if claim is not None and stretch.claims:
            claims = sum(log_sigmoid(claim.logit({"end": state})) for state in stretch.claims)
        return head.logit(stage_blocks(stretch) | {"claims": claims})

    def whole(self, held: Held) -> float | None:
        """The logit that a finished response's answer is right; None where no head reads it."""
        head = self.heads.get(WHOLE)
        return None if head is None else head.logit(whole_blocks(held))

    def _check(self, size: int) -> None:
        if size != (wanted := len(self.layers) * self.width):
            raise InputError(
                f"The model's states have {size:,} numbers a place; the probe reads {wanted:,}.",
                "It was fitted on another model: fit one with cot-engine train-verifier.",
            )

    def write(self, path: str | Path) -> None:
        """Write the file. Raises ConfigError."""
        from safetensors.numpy import save

        from cot_engine.files.writing import write_whole

        tensors: dict[str, Any] = {}
        plain = {}
        for name, head in self.heads.items():
            tensors |= {f"{name}/{block}": each for block, each in head.weights.items()}
            plain[name] = {"bias": head.bias, "absent": dict(head.absent)}
        about = {
            "schema": SCHEMA,
            "layers": list(self.layers),
            "width": self.width,
            "marks": dict(self.marks),
            "digest": self.digest,
            "heads": plain,
        }
        data = save(tensors, {"cot_engine": json.dumps(about)})
        write_whole(path, data, "The probe", ConfigError, "Give another folder.")

    @classmethod
    def of(cls, path: str | Path) -> Probe:
        """The probe in a file. Raises ConfigError for one that is not there, or none."""
        from safetensors import safe_open

        path = os.fspath(path)
        hint = "Fit one with cot-engine train-verifier, or leave it out: --probe none."
        try:
            if not os.path.exists(path):
                raise ConfigError(f"The probe {named(path)} is not there.", hint)
            opened(path, "probe", ConfigError, hint, MAX_BYTES).close()  # no pipe, and no giant
            with safe_open(path, "numpy") as file:
                about = _about(parse_json((file.metadata() or {})["cot_engine"]))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            size = len(about.layers) * about.width
            heads = {n: _head(n, plain, tensors, size) for n, plain in about.heads.items()}
            return cls(about.layers, about.width, heads, about.marks, about.digest)
        except ConfigError:
            raise
        except KeyError as error:
            why, hint = f"has no {error.args[0]}", "Is it a probe of cot-engine train-verifier?"
        except Exception as error:  # safetensors has one class of errors for all
            why = f"cannot be read: {said(error)}"
        raise ConfigError(f"The probe {named(path)} {why}.", hint)

    def check(
        self, digest: str, model: str, holds: tuple[int, Sequence[int]] | None = None
    ) -> None:
        """Raises ConfigError unless it was fitted on the weights with this digest, and reads what
        such a model `holds`: how wide its states are, and the layers that have them (None: nobody
        says)."""
        if self.digest and self.digest != digest:
            raise ConfigError(
                f"The probe was fitted on other weights ({self.digest[:12]}) than those of"
                f" {shown(model)} ({digest[:12]}).",
                _FIT,
            )
        if holds is None:
            return
        width, layers = holds
        if self.width != width:
            raise ConfigError(
                f"The probe reads states of {self.width:,} numbers; those of {shown(model)} have"
                f" {width:,}.",
                _FIT,
            )
        if odd := [layer for layer in self.layers if layer not in (*layers, -1)]:
            raise ConfigError(
                f"The probe reads layer {odd[0]}; {shown(model)} has states of {layers[0]} to"
                f" {layers[-1]}, and of -1.",
                _FIT,
            )


@dataclass(frozen=True)
class _Plain:
    """A head without its tensors."""

    bias: float
    absent: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _About:
    """What stands in a probe's file beside the tensors."""

    schema: Literal["probe-1"]
    layers: tuple[int, ...]
    width: int
    heads: dict[str, _Plain]
    marks: dict[str, str]
    digest: str


def _about(found: Any) -> _About:
    """Raises ValueError."""
    about: _About = reader(_About)(found)
    if not about.layers or min(about.layers) < -1 or len({*about.layers}) < len(about.layers):
        raise ValueError(f"layers is {list(about.layers)}: each is a number from -1 on, and once")
    if not about.heads or not all(about.marks.values()):
        raise ValueError("there is no head in it" if not about.heads else "a mark is empty")
    return about


def _head(name: str, plain: _Plain, tensors: Mapping[str, Any], size: int) -> Head:
    import numpy as np

    own = {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
    for block, weights in own.items():
        wanted = 1 if block in ("likelihood", "claims") else size
        if weights.shape != (wanted,):
            raise ValueError(f"{name}/{block} has the shape {weights.shape}, not ({wanted},)")
        if weights.dtype.kind != "f" or not np.isfinite(weights).all():
            raise ValueError(f"{name}/{block} holds what is no finite number of floating point")
        _check_size(f"{name}/{block}", float(np.abs(weights).max()))
    for about, value in {"bias": plain.bias, **plain.absent}.items():
        _check_size(f"{name}, {about},", value)
    return Head(float(plain.bias), own, plain.absent)


def _check_size(where: str, value: float) -> None:
    if abs(value) > LARGEST:
        raise ValueError(f"{where} holds {value:.3g}, and {LARGEST:g} is the most")


def stage_blocks(stretch: Stretch) -> dict[str, Any]:
    """What the head of a stage reads, claims aside."""
    span = stretch.span
    return {"end": stretch.end, "mean": span.mean, "likelihood": span.likelihood}


def whole_blocks(held: Held) -> dict[str, Any]:
    """What the head "whole" reads."""
    ends = {f"end:{tag}": state for tag, state in held.ends.items()}
    return {**ends, "mean": held.whole.mean, "likelihood": held.whole.likelihood}


def log_sigmoid(logit: float) -> float:
    """log(1 / (1 + exp(-logit))), for any logit."""
    return -math.log1p(math.exp(-logit)) if logit > 0 else logit - math.log1p(math.exp(logit))


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), for any logit."""
    return math.exp(log_sigmoid(logit))


@dataclass(frozen=True, slots=True)
class StatesScorer:
    """What the model's probe read while a chain was written, as a logit: of its last step, or of
    the whole response once that is finished. Costs nothing.

    Raises InputError for a chain of which nothing was read.
    """

    scale: ClassVar[Literal["logit"]] = "logit"

    async def score(self, chains: Sequence[Chain], case: Case, ask: Ask) -> list[float]:
        return [read(chain, case.about) for chain in chains]


def read(chain: Chain, about: str) -> float:
    """What a probe said of a chain: a logit. Raises InputError where it said nothing."""
    scores = chain.last.scores if chain.last else {}
    if about == "whole" and WHOLE in scores:
        return scores[WHOLE]
    if chain.last is not None and chain.last.stage in scores:
        return scores[chain.last.stage]
    stage = chain.last.stage if chain.last else "nothing"
    raise InputError(
        f"No probe has read the model's states in {stage}: there is none, or none for that stage.",
        "It takes a model in this process with a probe in its profile: cot-engine train-verifier.",
    )
