"""What a model's layers hold while it writes, handed over without computing anything again.

Hooks on the layers keep a step's states for as long as the step takes; the batch adds them up for
each row, and the worker takes those of the places that somebody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from cot_engine.backends.local.text import ChatText
from cot_engine.backends.models.family import Adapter
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Place, States
from cot_engine.errors import InputError


class Taps:
    """The states of some layers, while `open`."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.layers: tuple[int, ...] = ()
        self._open = False
        self._seen: dict[int, torch.Tensor] = {}
        self._hooks: list[Any] = []

    def want(self, layers: Sequence[int]) -> bool:
        """Keep these too from now on; whether that is news."""
        new = [layer for layer in dict.fromkeys(layers) if layer not in self.layers]
        self.layers = (*self.layers, *new)
        for layer in new:
            if layer >= 0:
                keep = self._keeping(layer)
                self._hooks.append(self.adapter.lm.layers[layer].register_forward_hook(keep))
        return bool(new)

    def _keeping(self, layer: int) -> Any:
        def keep(module: Any, given: Any, made: Any) -> None:
            if self._open:
                self._seen[layer] = made[0] if isinstance(made, tuple) else made

        return keep

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let hooks keep what goes by."""
        self._open = bool(self._hooks)
        try:
            yield
        finally:
            self._open = False
            self._seen.clear()

    def read(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, layers, width], float32, of the pass whose final states [rows, 1, width] these
        are."""
        each = [hidden if layer < 0 else self._seen[layer] for layer in self.layers]
        return torch.stack([state[:, 0].float() for state in each], 1)


class Marking:
    """Finds the marks that a row's newest token completed, for one request. Raises InputError for
    a layer that is none of `known`, nor -1."""

    def __init__(self, text: ChatText, states: States, known: Sequence[int]) -> None:
        for layer in states.layers:
            if layer not in known and layer != -1:
                raise InputError(
                    f"The states of layer {layer} were asked for; this model has layers 0 to"
                    f" {max(known)}, and -1 for what the last one gives after its norm; not those"
                    " that look at the picture alone.",
                    "A verifier is of the model that it was fitted on: cot-engine train-verifier.",
                )
        self.layers = states.layers
        self.marks = states.marks
        self.text = text
        self.watch = text.watch(Until(self.marks)) if self.marks else None

    def found(self, before: Sequence[int], ids: Sequence[int], counts: dict[str, int]) -> list[str]:
        """The marks complete in `ids`, behind `before`, beyond those in `counts`, which grows."""
        if self.watch is None or not self.watch.telling(ids[-1], False)[0]:
            return []
        written, new = self.text.added(before, ids), []
        for mark in self.marks:
            times = written.count(mark)
            new += [mark] * (times - counts.get(mark, 0))
            counts[mark] = times
        return new


def place(mark: str, token: int, held: torch.Tensor, of: Sequence[int], logprob: float) -> Place:
    """A place whose states and sums are `held` [2, layers, width], of which `of` were asked for."""
    values, sums = held[:, list(of)].cpu().numpy()
    return Place(mark, token, values, sums, logprob)
