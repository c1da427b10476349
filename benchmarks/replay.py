"""The bare loop of (b): every call of the model that a search made, made again with nothing else.

A recording keeps what each part of the model was called with: the picture of the vision tower, the
embeddings, mask, positions and cache of the language model, the final states that went into its
output layer. Replaying calls the same parts with the same things: no scheduling, no strategy, no
tokenizer, no drawing of tokens, no copying of keys and values from one request to the next.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cot_engine.backends.local.backend import LocalBackend


class Recording:
    """Calls of the model, in order. `shapes` counts them: what, rows, tokens, cached columns."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable, tuple, dict[str, Any]]] = []
        self.shapes: Counter[tuple[str, int, int, int]] = Counter()

    @contextmanager
    def of(self, backend: LocalBackend) -> Iterator[Recording]:
        """Record what `backend` asks of its model meanwhile."""
        adapter = backend.adapter
        encode = adapter.encode

        def encoding(image: Any) -> Any:
            self.note("encode", 1, image.tokens, 0, encode, image)
            return encode(image)

        def speaking(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            # The cache says where new tokens go; that changes from call to call.
            cache = copy.copy(kwargs["past_key_values"])
            rows, tokens = kwargs["inputs_embeds"].shape[:2]
            kwargs = {**kwargs, "past_key_values": cache}
            self.note("forward", rows, tokens, cache.columns - tokens, module, **kwargs)

        def heading(module: torch.nn.Module, args: tuple) -> None:
            self.note("head", args[0].shape[0], 1, 0, module, *args)

        hooks = [
            adapter.lm.register_forward_pre_hook(speaking, with_kwargs=True),
            adapter.head.register_forward_pre_hook(heading),
        ]
        adapter.encode = encoding
        try:
            yield self
        finally:
            del adapter.encode
            for hook in hooks:
                hook.remove()

    def note(
        self, what: str, rows: int, tokens: int, cached: int, call: Callable, *args: Any, **kw: Any
    ) -> None:
        self.shapes[what, rows, tokens, cached] += 1
        self.calls.append((call, args, kw))

    @torch.inference_mode()
    def replay(self) -> None:
        for call, args, kwargs in self.calls:
            call(*args, **kwargs)

    def summary(self) -> dict[str, Any]:
        """How many calls of each part, of how many rows on average."""
        found: dict[str, Any] = {}
        for what in ("encode", "forward", "head"):
            mine = {shape: count for shape, count in self.shapes.items() if shape[0] == what}
            calls = sum(mine.values())
            rows = sum(shape[1] * count for shape, count in mine.items())
            found[what] = {"calls": calls, "rows_per_call": round(rows / calls, 2) if calls else 0}
        steps = sum(c for (what, _, tokens, _), c in self.shapes.items()
                    if what == "forward" and tokens == 1)  # fmt: skip
        found["steps_of_one_token"] = steps
        return found
