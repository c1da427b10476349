"""Qwen3-VL: as Qwen2-VL, but the image also enters the first layers (deepstack)."""

from __future__ import annotations

from typing import Any

import torch

from cot_engine.backends.local.kv import RowCache
from cot_engine.backends.models.family import Features, Pass, Pixels
from cot_engine.backends.models.flops import encoder
from cot_engine.backends.models.qwen2_vl import Qwen2VLAdapter


class Qwen3VLAdapter(Qwen2VLAdapter):
    texts = ("qwen3_vl_text",)

    def features(self, image: Pixels) -> Features:
        output = self.look(image.inputs)
        deep = tuple(torch.cat(list(level)) for level in output.deepstack_features)
        return Features(torch.cat(list(output.pooler_output)), deep)

    @property
    def inside(self) -> int:
        return self.vision.hidden_size

    def tower_flops(self, frames: int, height: int, width: int) -> int:
        sizes = self.inside, self.vision.intermediate_size, self.vision.depth
        return encoder(frames * height * width, *sizes)

    def merger_flops(self, patches: int) -> int:
        levels = 1 + len(self.vision.deepstack_visual_indexes)
        return levels * super().merger_flops(patches)

    def extra(self, rows: Pass, cache: RowCache) -> dict[str, Any]:
        if not rows.spots:
            return {}
        where = torch.zeros_like(rows.ids, dtype=torch.bool)
        for row, columns, _, _ in rows.spots:
            where[row, columns] = True
        levels = zip(
            *(
                [level[first : first + len(columns)] for level in features.deep]
                for _, columns, features, first in rows.spots
            ),
            strict=True,
        )
        return {
            "visual_pos_masks": where,
            "deepstack_visual_embeds": [torch.cat(level) for level in levels],
        }
