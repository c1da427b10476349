"""Gemma 3: sliding and full layers; the tokens of an image see each other in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cot_engine.backends.models.family import Adapter, Pass, Pictured, Pixels
from cot_engine.backends.models.flops import linear, vit


class Gemma3Adapter(Adapter):
    in_parts = False  # an image's tokens see each other, whichever comes first
    texts = ("gemma3_text",)
    counting = "image_seq_length of processor_config.json, or mm_tokens_per_image of config.json"

    @property
    def placeholder_text(self) -> str:
        return self.processor.tokenizer.image_token

    def expand(self, inputs: dict[str, Any]) -> str:
        return self.processor.full_image_sequence

    def image_flops(self, image: Pixels) -> int:
        vision, tokens = self.vision, self.config.mm_tokens_per_image
        patches = (vision.image_size // vision.patch_size) ** 2
        return vit(vision, patches) + linear(tokens, vision.hidden_size, self.text.hidden_size)

    def mask(self, rows: Pass, columns: int) -> dict[str, torch.Tensor]:
        masks = super().mask(rows, columns)
        masks = masks if isinstance(masks, dict) else {"full_attention": masks}
        for row, at, _, _ in rows.spots:
            span = rows.positions[row, at]
            for mask in masks.values():
                mask[row, 0, at[:, None], span[None, :]] = 0
        return masks

    def stock_inputs(self, ids: torch.Tensor, rows: Sequence[Pictured]) -> dict[str, torch.Tensor]:
        return {**super().stock_inputs(ids, rows), "token_type_ids": self.marked(ids)}
