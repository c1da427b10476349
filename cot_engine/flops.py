"""Floating-point operations by formula, from a model's config. A multiply-add counts two.

Counted are matrix products: projections, attention scores and sums, convolutions over patches.
Norms, activations, rotations and softmax are left out, as PyTorch's own counter leaves them out.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any


class Flops:
    """Of one loaded model (its adapter)."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.text = adapter.text

    @cached_property
    def _heads(self) -> tuple[int, int, int]:
        text = self.text
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return text.num_attention_heads, text.num_key_value_heads, dim

    @cached_property
    def _linear(self) -> int:
        heads, kv, dim = self._heads
        width, inner = self.text.hidden_size, self.text.intermediate_size
        return 2 * width * dim * (2 * heads + 2 * kv) + 6 * width * inner

    def crossed(self, images: Any) -> int:
        return 0

    def prefill(self, tokens: int, context: int, crossed: int = 0) -> int:
        heads, _, dim = self._heads
        layers = len(self.adapter.self_layers())
        attention = 4 * heads * dim * tokens * (context + tokens)
        return layers * (tokens * self._linear + attention)

    def step(self, context: int, crossed: int = 0) -> int:
        return self.prefill(1, context, crossed) + self.head(1)

    def steps(self, context: int, count: int, crossed: int = 0) -> int:
        return count * self.step(context + count // 2 + 1, crossed)

    def head(self, count: int) -> int:
        return 2 * count * self.text.hidden_size * self.text.vocab_size

    def encode(self, image: Any) -> int:
        return 0
