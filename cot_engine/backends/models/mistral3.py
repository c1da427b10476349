"""Mistral 3: Pixtral's tower, of which squares of patches become one token."""

from __future__ import annotations

from typing import Any

from cot_engine.backends.models.flops import linear
from cot_engine.backends.models.pixtral import PixtralAdapter


class Mistral3Adapter(PixtralAdapter):
    @staticmethod
    def merge(config: Any) -> int:
        return int(config.spatial_merge_size)

    def projector_flops(self, patches: int, wide: int) -> int:
        merge, inner = self.merge(self.config) ** 2, self.vision.hidden_size
        tokens = patches // merge
        merger = linear(tokens, inner * merge, inner)
        return merger + super().projector_flops(tokens, wide)
