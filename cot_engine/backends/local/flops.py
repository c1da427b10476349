"""Floating-point operations by formula, from a model's config. A multiply-add counts two.

Counted are matrix products: projections, attention scores and sums (whole rectangles, as the
kernels' shapes have them), convolutions over patches. Norms, activations, rotations and softmax
are left out, as PyTorch's own counter leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterable
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


class Flops:
    """The formulas for one model config (of transformers)."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.text = text = config.get_text_config()
        self.vision = config.vision_config
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.queries = text.num_attention_heads * dim
        self.keys = text.num_key_value_heads * dim
        self.cross_layers = len(getattr(text, "cross_attention_layers", None) or ())
        self.self_layers = text.num_hidden_layers - self.cross_layers
        self._logits = linear(1, text.hidden_size, text.vocab_size)
        mlp = 3 * linear(1, text.hidden_size, text.intermediate_size)
        self._token = 2 * linear(1, text.hidden_size, self.queries) + mlp
        self._keys_and_values = 2 * linear(1, text.hidden_size, self.keys)

    # --- the language model ----------------------------------------------------------------------

    def prefill(self, tokens: int, context: int, crossed: int = 0) -> int:
        """`tokens` new ones behind `context` cached ones; they see `crossed` vision tokens through
        cross-attention layers (Mllama). Without the vocabulary projection: see `head`."""
        seen = attention(tokens, context + tokens, self.queries)
        flops = self.self_layers * (tokens * (self._token + self._keys_and_values) + seen)
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

    # --- images ----------------------------------------------------------------------------------

    def crossed(self, images: Iterable[Any]) -> int:
        """How many vision tokens the cross-attention layers hold of these images."""
        if not self.cross_layers:
            return 0
        vision = self.vision
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        return sum(vision.max_num_tiles * patches for _ in images)

    def encode(self, image: Any) -> int:
        """One preprocessed image (`family.Pixels`) through vision tower and projector."""
        kind = self.config.model_type
        inputs = image.inputs
        if kind in ("llava", "llava_next"):
            crops = inputs["pixel_values"].shape[-4]
            return crops * self._llava(inputs["pixel_values"].shape[-2:])
        if kind in ("idefics3", "smolvlm"):
            return self._idefics(inputs)
        if kind == "gemma3":
            tokens = self.config.mm_tokens_per_image
            return (
                self._patches(self._side**2)
                + encoder(self._side**2, *self._vit)
                + linear(tokens, self.vision.hidden_size, self.text.hidden_size)
            )
        if kind == "mllama":
            return self._mllama()
        return self._qwen(kind, *(int(n) for n in inputs["image_grid_thw"][0]))

    @property
    def _side(self) -> int:
        return self.vision.image_size // self.vision.patch_size

    @property
    def _vit(self) -> tuple[int, int, int]:
        vision = self.vision
        return vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers

    def _patches(self, count: int) -> int:
        vision = self.vision
        channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", 3)
        return linear(count, channels * vision.patch_size**2, vision.hidden_size)

    def _llava(self, size: tuple[int, int]) -> int:
        """One crop; CLIP puts a class token before the patches, SigLIP does not."""
        config, vision = self.config, self.vision
        patches = (size[0] // vision.patch_size) * (size[1] // vision.patch_size)
        tokens = patches + (vision.model_type == "clip_vision_model")
        default = config.vision_feature_select_strategy == "default"
        levels = config.vision_feature_layer
        wide = vision.hidden_size * (1 if isinstance(levels, int) else len(levels))
        projector = linear(tokens - default, wide, *(2 * [self.text.hidden_size]))
        return self._patches(patches) + encoder(tokens, *self._vit) + projector

    def _idefics(self, inputs: dict[str, Any]) -> int:
        """All tiles that hold anything; empty ones are padding and dropped."""
        pixels = inputs["pixel_values"]
        tiles = int((pixels.flatten(0, 1).flatten(1) != 0).any(-1).sum())
        patches = self._side**2
        shrink = self.config.scale_factor**2
        connector = linear(
            patches // shrink, self.vision.hidden_size * shrink, self.text.hidden_size
        )
        return tiles * (self._patches(patches) + encoder(patches, *self._vit) + connector)

    def _mllama(self) -> int:
        """All tiles as one sequence, each padded to a multiple of 8 patches, padding tiles too;
        then the cross-attention layers' keys and values."""
        vision = self.vision
        tiles, patches = vision.max_num_tiles, self._side**2
        tokens = tiles * (-(-(patches + 1) // 8) * 8)
        layers = vision.num_hidden_layers + vision.num_global_layers
        tower = encoder(tokens, vision.hidden_size, vision.intermediate_size, layers)
        real = tiles * (patches + 1)
        projector = linear(real, vision.vision_output_dim, self.text.hidden_size)
        crossing = self.cross_layers * real * self._keys_and_values
        return tiles * self._patches(patches) + tower + projector + crossing

    def _qwen(self, kind: str, frames: int, height: int, width: int) -> int:
        vision = self.vision
        patches = frames * height * width
        inside = vision.embed_dim if kind == "qwen2_vl" else vision.hidden_size
        outside = self.text.hidden_size
        pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
        merge = vision.spatial_merge_size**2
        merger = linear(patches // merge, merge * inside, merge * inside, outside)
        flops = linear(patches, pixels, inside) + merger
        if kind == "qwen2_vl":
            inner = int(inside * vision.mlp_ratio)
            return flops + encoder(patches, inside, inner, vision.depth)
        inner = vision.intermediate_size
        if kind == "qwen3_vl":
            flops += len(vision.deepstack_visual_indexes) * merger
            return flops + encoder(patches, inside, inner, vision.depth)
        whole = len(vision.fullatt_block_indexes)
        within = sum(n * n for n in self._windows(height, width)) * frames
        flops += encoder(patches, inside, inner, vision.depth, gated=True, keys=0)
        flops += whole * attention(patches, patches, inside)
        return flops + (vision.depth - whole) * attention(1, within, inside)

    def _windows(self, height: int, width: int) -> list[int]:
        """Patches in each of Qwen2.5-VL's attention windows."""
        vision = self.vision
        side = vision.window_size // vision.patch_size
        rows = [min(side, height - at) for at in range(0, height, side)]
        columns = [min(side, width - at) for at in range(0, width, side)]
        return [a * b for a in rows for b in columns]
