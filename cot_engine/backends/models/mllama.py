"""Mllama (Llama 3.2 Vision): images enter through cross-attention layers instead of tokens.

Their keys and values are computed once per image and search and are kept apart from the text's,
so nothing ever crops them. Rows of one image set share them without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cot_engine.backends.local.kv import RowCache
from cot_engine.backends.models.family import Adapter, Features, Pixels, Rows

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
    spared = ("model.vision_model", "model.multi_modal_projector", "lm_head")
    texts = ("mllama_text_model",)
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

    def vision(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Projected vision states [tokens, width] of all tiles, padding tiles included."""
        model = self.model.model
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        moved = {name: inputs[name].to(self.device) for name in names}
        moved["pixel_values"] = moved["pixel_values"].to(self.dtype)
        states = model.vision_model(**moved).last_hidden_state
        return model.multi_modal_projector(states).flatten(0, -2)

    def encode(self, image: Pixels) -> Features:
        states = self.vision(image.inputs)
        parts = []
        for layer in self.crossing:
            attention = self.lm.layers[layer].cross_attn
            shape = (len(states), attention.num_key_value_heads, attention.head_dim)
            keys = attention.k_norm(attention.k_proj(states).view(shape))
            values = attention.v_proj(states).view(shape)
            parts.append(torch.stack([keys, values]).transpose(1, 2))
        patches = self.model.model.vision_model.num_patches
        tiles = int(torch.as_tensor(image.inputs["num_tiles"]).reshape(-1)[0])
        seen = torch.arange(len(states), device=self.device) < tiles * patches
        return Features(cross=torch.stack(parts), seen=seen)

    def extra(self, rows: Rows, cache: RowCache) -> dict[str, Any]:
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
            real = torch.cat([f.seen for f in features])
            of = torch.cat(
                [torch.full_like(f.seen, i, dtype=torch.long) for i, f in enumerate(features)]
            )
            allowed = (sees[:, of] & real) | ~sees.any(-1, keepdim=True)
            mask = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill_(~allowed, float("-inf"))[None, None]
            cross = (
                features[0].cross
                if len(features) == 1
                else torch.cat([f.cross for f in features], dim=-2)
            )
            groups.append(Pictures([row], cross, mask))
            if single and rows.positions[row, 0] > placeholders[-1]:
                shared[key] = groups[-1]
        if not groups:
            return {}
        layers: list[Any] = [NoLayer()] * self.text.num_hidden_layers
        for index, layer in enumerate(self.crossing):
            layers[layer] = CrossLayer(CrossKeys(groups, index))
        cache.layers = layers
        return {"full_text_row_masked_out_mask": fully[:, None]}


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
