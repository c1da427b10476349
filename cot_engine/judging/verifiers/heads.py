"""Verifiers by heads: a linear layer on the final state of a model that read a candidate.

A head is a safetensors file with a matrix [outputs, width] and maybe a bias, under whatever names:
`value_head.safetensors` of a reward model is one. Behind a server that pools or scores there is no
state to read: it has applied its head, and gives numbers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping as Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any as Any

from cot_engine.core.chain import Chain
from cot_engine.core.parts import Scale
from cot_engine.errors import ConfigError, said, shown
from cot_engine.judging.protocol import Ask, Case
from cot_engine.judging.verifiers.asked import Asked, recent
from cot_engine.judging.verifiers.scale import Aggregate as Aggregate
from cot_engine.judging.verifiers.scale import finite
from cot_engine.judging.verifiers.words import Steps as Steps
from cot_engine.judging.verifiers.words import Turn as Turn

if TYPE_CHECKING:
    import numpy as np

_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadVerifier(Asked):
    """A number for each candidate: the `output` of a linear layer (`head`, a file) on the model's
    final state at the end of the dialogue, or at its marked places.

    A relative `head` is looked for in the model's folder, then here. Without one the numbers are
    those that the model gives, as a server's pooling or score endpoint does. `sigmoid`: the number
    is its log-odds. With `digest` it is refused on other weights than those. A reward model's
    numbers have no bounds: with `centre` and `spread` they become log-odds. Raises ConfigError for
    what will not do.
    """

    head: str = ""
    output: int = 0
    sigmoid: bool = False
    digest: str = ""

    def __post_init__(self) -> None:
        Asked.__post_init__(self)
        if type(self.output) is not int:
            raise ConfigError(f"output is {shown(self.output)}.", "It must be a whole number.")
        if self.sigmoid and (self.low is not None or self.spread is not None):
            raise ConfigError(
                "A head has sigmoid and a scale of its own.", "Leave one of them out."
            )
        self.reading.check(self._own)
        if self.head:
            _layer(*_version(self.find()))

    def _default(self) -> tuple[Turn, ...]:
        return (Turn("user", "{question}"), Turn("assistant", "{response}"))

    @property
    def _own(self) -> Scale:
        return "logit" if self.sigmoid else "any"

    @property
    def scale(self) -> Scale:
        """What its numbers are."""
        return self.reading.scale(self._own)

    def find(self) -> Path:
        """The file of the head. Raises ConfigError where it is nowhere."""
        places = [Path(self.head).expanduser()]
        if isinstance(self.model, str) and os.path.isdir(self.model):
            places.insert(0, Path(self.model) / self.head)
        for place in places:
            if place.is_file():
                return place
        raise ConfigError(
            f"The head {self.head!r} is not there: not at {' nor at '.join(map(str, places))}.",
            "Give its path; that of a model by its name on the hub is where it was downloaded.",
        )

    async def score(self, chains: Sequence[Chain], case: Case, ask: Ask) -> list[float]:
        """A number for each chain. Raises as `Scorer.score` does."""
        told = [self.script.of_one(chain, case) for chain in chains]
        own = await ask.verifying(self.binding)
        if self.digest and not (found := own.info.digest).startswith(self.digest):
            raise ConfigError(
                f"The head belongs to the weights {self.digest[:16]}; the model"
                f" {shown(own.info.model)} has {shown(found[:16])}.",
                "Give the model that it was trained on, or leave digest out.",
            )
        layer = _layer(*_version(self.find())) if self.head else None
        measured = await own.measure([dialogue for dialogue, *_ in told])
        scores = []
        for places, (_, new, steps) in zip(measured, told, strict=True):
            numbers = [self._number(state, layer) for state in recent(places, new, case, steps)]
            scores.append(self.reading.all(numbers))
        return scores

    def _number(self, state: Sequence[float], layer: tuple[Any, Any] | None) -> float:
        if layer is not None:
            weight, bias = layer
            if weight.shape[1] != len(state):
                raise ConfigError(
                    f"The head {self.head!r} reads states of {weight.shape[1]:,} numbers; the"
                    f" model's have {len(state):,}.",
                    "It was trained on another model: give that one, or its own head.",
                )
            import numpy as np

            if abs(math.hypot(*state) - 1) < 1e-3:
                raise ConfigError(
                    f"The head {self.head!r} reads states as the model has them; these are one"
                    " long: whoever gives them has divided them by their length.",
                    "Start the server without, such as vLLM with --pooler-config"
                    ' \'{"pooling_type": "LAST", "use_activation": false}\'.',
                )
            state = (weight @ np.asarray(state, dtype=np.float64) + bias).tolist()
        if not -len(state) <= self.output < len(state):
            raise ConfigError(
                f"output is {self.output}, and there are {len(state)}.", "They count from 0."
            )
        return finite(state[self.output])


def _version(path: Path) -> tuple[str, int]:
    return str(path), path.stat().st_mtime_ns


@lru_cache(maxsize=16)
def _layer(path: str, changed: int) -> tuple[np.ndarray, np.ndarray]:
    """The weight [outputs, width] and the bias [outputs] in a file, in float64. Raises
    ConfigError."""
    import numpy as np

    try:
        tensors = _tensors(path)
    except Exception as error:
        raise ConfigError(
            f"The head {path!r} is no safetensors file: {said(error)}.", "Download it again."
        ) from None
    matrices = {name: value for name, value in tensors.items() if value.ndim == 2}
    if len(matrices) != 1:
        raise ConfigError(
            f"The head {path!r} has {len(matrices)} matrices ({', '.join(sorted(tensors))}).",
            "It must be one linear layer.",
        )
    ((name, weight),) = matrices.items()
    biases = [v for n, v in tensors.items() if n != name and v.shape == weight.shape[:1]]
    if len(biases) > 1 or len(tensors) > 1 + len(biases):
        raise ConfigError(
            f"The head {path!r} holds {', '.join(sorted(tensors))}.",
            "It must be one linear layer: a matrix, and maybe its bias.",
        )
    bias = biases[0] if biases else np.zeros(weight.shape[0])
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ConfigError(f"The head {path!r} has numbers that are none.", "Download it again.")
    return weight, bias


def _tensors(path: str) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file in float64; bfloat16 too, which numpy has not."""
    import numpy as np

    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        raw = np.frombuffer(data[start:end], dtype=_KINDS[entry["dtype"]])
        if entry["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        found[name] = raw.reshape(entry["shape"]).astype(np.float64)
    return found
