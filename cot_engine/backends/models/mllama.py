"""Mllama (Llama 3.2 Vision): images enter through cross-attention layers instead of tokens.

Their keys and values are computed once per image and search and are kept apart from the text's,
so nothing ever crops them. Rows of one image set share them without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cot_engine.backends.local.kv import RowCache
from cot_engine.backends.models.family import Adapter, Features, Pass, Pictured, Pixels, by_row
from cot_engine.backends.models.flops import encoder, linear, patches

ATTENTION = "cot_engine"


@dataclass(slots=True)
class Pictures:
    """What one row, or several rows of one token that share their images, see of them."""

    rows: list[int]
    cross: torch.Tensor  # [layers, 2, heads, tokens, dim]
    mask: torch.Tensor | None  # additive [1, 1, queries or 1, tokens]


@dataclass(slots=True)
class CrossKeys:
    """Stands where a cross-attention layer expects its cached keys, for rows of many images."""

    groups: list[Pictures]
    layer: int

    def numel(self) -> int:
        return 1


@dataclass(slots=True)
class CrossLayer:
    keys: CrossKeys
    values: None = None
    is_initialized: bool = True


@dataclass(slots=True)
class NoLayer:
    is_initialized: bool = False


def attend(module: Any, query: torch.Tensor, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
    """sdpa, and for cross-attention layers sdpa group by group. query: [rows, heads, tokens, dim].

    A row without images gets zeros: with its gates' row mask it passes the layer unchanged.
    """
    if not isinstance(key, CrossKeys):
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    rows, heads, tokens, dim = query.shape
    out = query.new_zeros(rows, tokens, heads, dim)
    for group in key.groups:
        # Decoding rows of one image set are queries of one batch element: no copy of the keys.
        asked = query[group.rows].transpose(0, 1).reshape(1, heads, -1, dim)
        keys, values = group.cross[key.layer].unsqueeze(1)
        answer, _ = sdpa_attention_forward(
            module, asked, keys, values, group.mask, is_causal=False, **kwargs
        )
        answer = answer.view(len(group.rows), tokens, heads, dim)
        out[group.rows] = answer
    return out, None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class MllamaAdapter(Adapter):
    texts = ("mllama_text_model",)
    spared = ("model.vision_model", "model.multi_modal_projector", "lm_head")
    # A token before the first image attends to all of them evenly (the model's own oddity), so
    # even such tokens cannot be shared between prompts of different images.
    prompt_depends_on_images = True

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.lm.config._attn_implementation = ATTENTION
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

    def extra(self, rows: Pass, cache: RowCache) -> dict[str, Any]:
        """Group the rows by their images and say what each token sees of them."""
        groups: list[Pictures] = []
        shared: dict[tuple[int, ...], Pictures] = {}
        single = rows.ids.shape[1] == 1
        fully = torch.zeros(*rows.ids.shape, 1, device=self.device, dtype=self.dtype)
        for row, (features, placeholders) in enumerate(rows.pictures):
            if not features:
                continue
            # Rows of one token all come after their images: those of one prompt look alike.
            key = tuple(id(f) for f in features) + placeholders
            if single and key in shared and rows.positions[row, 0] > placeholders[-1]:
                shared[key].rows.append(row)
                fully[row] = 1
                continue
            sees = _sees(rows.positions[row], placeholders)
            fully[row, :, 0] = sees.any(-1)
            crosses, seen = zip(*(f.crossed() for f in features), strict=True)
            real = torch.cat(seen)
            of = torch.cat([torch.full_like(s, i, dtype=torch.long) for i, s in enumerate(seen)])
            allowed = (sees[:, of] & real) | ~sees.any(-1, keepdim=True)
            mask = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill_(~allowed, float("-inf"))[None, None]
            cross = crosses[0] if len(features) == 1 else torch.cat(crosses, dim=-2)
            groups.append(Pictures([row], cross, mask))
            if single and rows.positions[row, 0] > placeholders[-1]:
                shared[key] = groups[-1]
        if not groups:
            return {}
        layers: list[object] = [NoLayer()] * self.text.num_hidden_layers
        for index, layer in enumerate(self.crossing):
            layers[layer] = CrossLayer(CrossKeys(groups, index))
        cache.layers = layers
        return {"full_text_row_masked_out_mask": fully[:, None]}

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
