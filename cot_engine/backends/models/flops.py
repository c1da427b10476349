"""Floating-point operations by formula, from a model's config. A multiply-add counts two.

`Flops` are those of a language model; what an image costs, its family's file says with the
functions here.

Counted are matrix products: projections, attention scores and sums (whole rectangles, as the
kernels' shapes have them), convolutions over patches. Norms, activations, rotations and softmax
are left out, as PyTorch's own counter leaves them out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any


def linear(tokens: int, *widths: int) -> int:
    """`tokens` vectors through matrices widths[0] x widths[1], widths[1] x widths[2], ..."""
    return sum(2 * tokens * a * b for a, b in pairwise(widths))


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and weighted sum; `width` is heads * head dimension of the queries."""
    return 4 * queries * keys * width


def encoder(
    tokens: int, width: int, inner: int, layers: int, gated: bool = False, keys: int | None = None
) -> int:
    """Transformer layers over one sequence, each token seeing `keys` (all, if None)."""
    mlp = (3 if gated else 2) * linear(tokens, width, inner)
    seen = tokens if keys is None else keys
    return layers * (4 * linear(tokens, width, width) + mlp + attention(tokens, seen, width))


def patches(vision: Any, count: int) -> int:
    """`count` patches of an image become vectors."""
    channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", 3)
    return linear(count, channels * vision.patch_size**2, vision.hidden_size)


def vit(vision: Any, count: int, more: int = 0) -> int:
    """A plain vision transformer on `count` patches and `more` tokens of its own."""
    sizes = vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers
    return patches(vision, count) + encoder(count + more, *sizes)


class Flops:
    """The formulas for one language model, by its config (of transformers)."""

    def __init__(self, text: Any) -> None:
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.queries = text.num_attention_heads * dim
        self.keys = text.num_key_value_heads * dim
        self.cross_layers = len(getattr(text, "cross_attention_layers", None) or ())
        self.self_layers = text.num_hidden_layers - self.cross_layers
        self._logits = linear(1, text.hidden_size, text.vocab_size)
        mlp = 3 * linear(1, text.hidden_size, text.intermediate_size)
        self._token = 2 * linear(1, text.hidden_size, self.queries) + mlp
        # A layer of experts: those that a token goes through, and what chooses them.
        self._experts = _sparse(text) * (_active(text) - mlp)
        self._keys_and_values = 2 * linear(1, text.hidden_size, self.keys)

    def prefill(self, tokens: int, context: int, crossed: int = 0) -> int:
        """`tokens` new ones behind `context` cached ones; they see `crossed` vision tokens through
        cross-attention layers (Mllama). Without the vocabulary projection: see `head`."""
        seen = attention(tokens, context + tokens, self.queries)
        flops = self.self_layers * (tokens * (self._token + self._keys_and_values) + seen)
        flops += tokens * self._experts
        if crossed:
            beside = attention(tokens, crossed, self.queries)
            flops += self.cross_layers * (tokens * self._token + beside)
        return flops

    def head(self, count: int) -> int:
        """Logits at `count` positions."""
        return count * self._logits

    def step(self, context: int, crossed: int = 0) -> int:
        """One decoded token behind `context` cached ones, with its logits."""
        return self.prefill(1, context, crossed) + self.head(1)

    def steps(self, context: int, count: int, crossed: int = 0) -> int:
        """`count` decoded tokens behind `context`: the last is drawn, but not fed."""
        fed = count - 1
        growth = attention(1, 1, self.queries) * self.self_layers * fed * (fed - 1) // 2
        return fed * self.step(context, crossed) + growth

    def crossing(self, tokens: int) -> int:
        """The cross-attention layers' keys and values of `tokens` vision tokens."""
        return self.cross_layers * tokens * self._keys_and_values


def _sparse(text: Any) -> int:
    """How many layers have experts."""
    if getattr(text, "n_routed_experts", 0):  # GLM: all but the first ones
        return text.num_hidden_layers - text.first_k_dense_replace
    every = getattr(text, "decoder_sparse_step", 0) if getattr(text, "num_experts", 0) else 0
    dense = getattr(text, "mlp_only_layers", None) or ()
    layers = range(text.num_hidden_layers) if every else ()
    return sum((layer + 1) % every == 0 and layer not in dense for layer in layers)


def _active(text: Any) -> int:
    """Of one token in a layer of experts: those chosen for it, those for all, and the choosing."""
    count = getattr(text, "n_routed_experts", 0) or getattr(text, "num_experts", 0)
    if not count:
        return 0
    each = 3 * linear(1, text.hidden_size, text.moe_intermediate_size)
    active = text.num_experts_per_tok + getattr(text, "n_shared_experts", 0)
    return active * each + linear(1, text.hidden_size, count)
