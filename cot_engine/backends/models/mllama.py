"""Mllama (Llama 3.2 Vision): images enter through cross-attention layers instead of tokens.

Their keys and values are computed once per image and search and are kept apart from the text's,
so nothing ever crops them. Rows of one image set share them without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from cot_engine.backends.local.attention import with_sums
from cot_engine.backends.local.kv import KVShape, RowCache
from cot_engine.backends.models.family import (
    Adapter,
    Features,
    Looking,
    Pass,
    Pictured,
    Pixels,
    by_row,
)
from cot_engine.backends.models.flops import encoder, linear, patches


@dataclass(slots=True)
class Pictures:
    """What a row sees of its images."""

    row: int
    cross: torch.Tensor  # [layers, 2, heads, tokens, dim]
    mask: torch.Tensor  # additive [1, 1, queries, tokens]


@dataclass(frozen=True, slots=True)
class RowByRow:
    """A cross-attention layer's keys, for rows of many tokens: each looks at its own images."""

    rows: list[Pictures]
    layer: int

    def numel(self) -> int:
        return 1

    def attend(
        self, query: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> torch.Tensor:
        """A row without images gets zeros: with its gates' row mask it passes unchanged."""
        out = torch.zeros_like(query)
        for one in self.rows:
            keys, values = one.cross[self.layer].unsqueeze(1)
            asked = query[one.row : one.row + 1]
            (out[one.row],) = scaled_dot_product_attention(
                asked, keys, values, one.mask, scale=scaling, enable_gqa=True
            )
        return out.transpose(1, 2).contiguous()


@dataclass(frozen=True, slots=True)
class Together:
    """The same for rows of one token: those that see the same images are queries of one group."""

    looking: Looking
    layer: int

    def numel(self) -> int:
        return 1

    def attend(
        self, query: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> torch.Tensor:
        keys, values = self.looking.kv[self.layer]
        seats = self.looking.seats
        asked = seats.gather(query, keys.shape[1])
        found, _ = with_sums(asked, keys, values, self.looking.mask, scaling)
        found = seats.scatter(found, query.shape[2]) * self.looking.some[:, None, None, None]
        return found.transpose(1, 2).contiguous()


@dataclass(slots=True)
class CrossLayer:
    keys: RowByRow | Together
    values: None = None
    is_initialized: bool = True


@dataclass(slots=True)
class NoLayer:
    is_initialized: bool = False


class MllamaAdapter(Adapter):
    texts = ("mllama_text_model",)
    spared = ("model.vision_model", "model.multi_modal_projector", "lm_head")
    # A token before the first image attends to all of them evenly (the model's own oddity), so
    # even such tokens cannot be shared between prompts of different images.
    prompt_depends_on_images = True

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.crossing = tuple(self.text.cross_attention_layers)

    def self_layers(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.text.num_hidden_layers) if i not in self.crossing)

    def preprocess(self, pixels: Any) -> Any:
        return self.processor.image_processor(images=[[pixels]], return_tensors="pt")

    def expand(self, inputs: dict[str, Any]) -> str:
        return self.image_tag

    def image_flops(self, image: Pixels) -> int:
        """All tiles as one sequence, each padded to a multiple of 8 patches, padding tiles too;
        then the cross-attention layers' keys and values."""
        vision, tiles = self.vision, self.vision.max_num_tiles
        real = self.crossed([image])
        count = real // tiles
        layers = vision.num_hidden_layers + vision.num_global_layers
        tokens = tiles * (-(-count // 8) * 8)
        tower = encoder(tokens, vision.hidden_size, vision.intermediate_size, layers)
        projector = linear(real, vision.vision_output_dim, self.text.hidden_size)
        return tiles * patches(vision, count - 1) + tower + projector + self.flops.crossing(real)

    def crossed(self, images: Sequence[Pixels]) -> int:
        """Patches and a class token of every tile, padding tiles too."""
        vision = self.vision
        each = (vision.image_size // vision.patch_size) ** 2 + 1
        return len(images) * vision.max_num_tiles * each

    def look(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Projected vision states [tokens, width] of all tiles, padding tiles included."""
        model = self.model.model
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        moved = {name: inputs[name].to(self.device) for name in names}
        moved["pixel_values"] = moved["pixel_values"].to(self.dtype)
        states = model.vision_model(**moved).last_hidden_state
        return model.multi_modal_projector(states).flatten(0, -2)

    def features(self, image: Pixels) -> Features:
        states = self.look(image.inputs)
        parts = []
        for layer in self.crossing:
            attention = self.lm.layers[layer].cross_attn
            shape = (len(states), attention.num_key_value_heads, attention.head_dim)
            keys = attention.k_norm(attention.k_proj(states).view(shape))
            values = attention.v_proj(states).view(shape)
            parts.append(torch.stack([keys, values]).transpose(1, 2))
        each = self.model.model.vision_model.num_patches
        seen = torch.arange(len(states), device=self.device) < _tiles(image) * each
        return Features(cross=torch.stack(parts), seen=seen)

    def crossing_shape(self) -> KVShape:
        own = self.kv_shape()
        return KVShape(self.crossing, own.heads, own.dim, own.dtype, own.device)

    def beside(
        self, features: Sequence[Features], placeholders: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cross, allowed, _ = self._seen(features, placeholders, torch.tensor([1 << 40]))
        return cross, allowed[0]

    def _seen(
        self, features: Sequence[Features], placeholders: Sequence[int], at: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All images' keys and values; which of them tokens at these places see [tokens, all]; and
        which tokens come behind an image at all [tokens]: the others look at everything."""
        sees = _sees(at.to(self.device), tuple(placeholders))
        crosses, seen = zip(*(f.crossed() for f in features), strict=True)
        of = torch.cat([torch.full_like(s, i, dtype=torch.long) for i, s in enumerate(seen)])
        behind = sees.any(-1)
        allowed = (sees[:, of] & torch.cat(seen)) | ~behind[:, None]
        cross = crosses[0] if len(features) == 1 else torch.cat(crosses, dim=-2)
        return cross, allowed, behind

    def extra(self, rows: Pass, cache: RowCache) -> dict[str, Any]:
        """Say what each token sees of its row's images."""
        if rows.looking is not None:
            looking = rows.looking
            self._look(cache, lambda layer: Together(looking, layer))
            return {"full_text_row_masked_out_mask": looking.some[:, None, None, None]}
        found = []
        fully = torch.zeros(*rows.ids.shape, 1, device=self.device, dtype=self.dtype)
        for row, (features, placeholders) in enumerate(rows.pictures):
            if not features:
                continue
            cross, allowed, behind = self._seen(features, placeholders, rows.at[row])
            fully[row, :, 0] = behind
            mask = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill_(~allowed, float("-inf"))[None, None]
            found.append(Pictures(row, cross, mask))
        if not found:
            return {}
        self._look(cache, lambda layer: RowByRow(found, layer))
        return {"full_text_row_masked_out_mask": fully[:, None]}

    def _look(self, cache: RowCache, keys: Callable[[int], RowByRow | Together]) -> None:
        layers: list[object] = [NoLayer()] * self.text.num_hidden_layers
        for index, layer in enumerate(self.crossing):
            layers[layer] = CrossLayer(keys(index))
        cache.layers = layers

    def stock_inputs(self, ids: torch.Tensor, rows: Sequence[Pictured]) -> dict[str, torch.Tensor]:
        """And `pictured` [rows], how many pictures each row has, where they differ: what stands
        before a row's first picture looks at all tiles evenly, and of a row with fewer pictures
        than another's at empty ones, so such rows must go through the model apart."""
        from transformers.models.mllama.processing_mllama import (
            convert_sparse_cross_attention_mask_to_dense,
            get_cross_attention_token_mask,
        )

        found = by_row(rows, "pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        mask = convert_sparse_cross_attention_mask_to_dense(
            [get_cross_attention_token_mask(list(row.ids), self.placeholder) for row in rows],
            num_tiles=[[_tiles(image) for image in row.images] for row in rows],
            max_num_tiles=found["pixel_values"].shape[2],
            length=ids.shape[1],
        )
        found["cross_attention_mask"] = torch.from_numpy(mask)
        counts = torch.tensor([len(row.images) for row in rows])
        return found if (counts == counts[0]).all() else {**found, "pictured": counts}


def _tiles(image: Pixels) -> int:
    """How many tiles hold a part of the picture."""
    return int(torch.as_tensor(image.inputs["num_tiles"]).reshape(-1)[0])


def _sees(positions: torch.Tensor, placeholders: tuple[int, ...]) -> torch.Tensor:
    """[tokens, images]: a token sees the latest image before it, and those directly in front of
    that one: consecutive images form a group."""
    first = list(placeholders)
    for i in range(1, len(first)):
        if placeholders[i] == placeholders[i - 1] + 1:
            first[i] = first[i - 1]
    at = torch.tensor(placeholders, device=positions.device)
    group = torch.tensor(first, device=positions.device)
    passed = positions[:, None] >= at
    latest = (passed * (at + 1)).amax(-1, keepdim=True)  # 1 + position of the latest image
    latest_group = torch.where(at + 1 == latest, group, -1).amax(-1, keepdim=True)
    return passed & (group == latest_group)
