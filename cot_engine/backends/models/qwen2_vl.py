"""Qwen2-VL and Qwen2.5-VL: positions in three dimensions, from the image's grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cot_engine.backends.models.family import Adapter, Pictured, Pixels, joined, without_video
from cot_engine.backends.models.flops import attention, encoder, linear
from cot_engine.backends.models.places import bound_area


class Qwen2VLAdapter(Adapter):
    texts = ("qwen2_vl_text",)
    spared = ("model.visual", "lm_head")
    bound = staticmethod(bound_area)

    @classmethod
    def load_processor(cls, folder: Path, config: Any) -> Any:
        return without_video(folder, "<|image_pad|>")

    def bounds(self, most: int) -> dict[str, Any]:
        return self.bound(self.processor.image_processor.to_dict(), most)

    def expand(self, inputs: dict[str, Any]) -> str:
        merge = self.processor.image_processor.merge_size
        return self.image_tag * (int(inputs["image_grid_thw"][0].prod()) // merge**2)

    def image_flops(self, image: Pixels) -> int:
        frames, height, width = (int(n) for n in image.inputs["image_grid_thw"][0])
        vision, patches = self.vision, frames * height * width
        pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
        tower = self.tower_flops(frames, height, width)
        return linear(patches, pixels, self.inside) + tower + self.merger_flops(patches)

    @property
    def inside(self) -> int:
        """How wide the vision tower is."""
        return self.vision.embed_dim

    def tower_flops(self, frames: int, height: int, width: int) -> int:
        inner = int(self.inside * self.vision.mlp_ratio)
        return encoder(frames * height * width, self.inside, inner, self.vision.depth)

    def merger_flops(self, patches: int) -> int:
        """Neighbouring patches become one token of the language model."""
        merge = self.vision.spatial_merge_size**2
        wide = merge * self.inside
        return linear(patches // merge, wide, wide, self.text.hidden_size)

    def rope(self, ids: list[int], images: list[Pixels]) -> tuple[torch.Tensor | None, int]:
        if not images:
            return None, 0
        tokens = torch.tensor([ids])
        positions, delta = self.model.model.get_rope_index(
            tokens,
            mm_token_type_ids=(tokens == self.placeholder).int(),
            image_grid_thw=torch.cat([image.inputs["image_grid_thw"] for image in images]),
        )
        return positions[:, 0], int(delta)

    def stock_inputs(self, ids: torch.Tensor, rows: Sequence[Pictured]) -> dict[str, torch.Tensor]:
        """The patches of all pictures in one row."""
        found = joined(rows, "pixel_values", "image_grid_thw")
        return {**found, "mm_token_type_ids": self.marked(ids)}


class Qwen2_5_VLAdapter(Qwen2VLAdapter):
    """Its vision tower looks through windows, but in a few layers."""

    texts = ("qwen2_5_vl_text",)

    @property
    def inside(self) -> int:
        return self.vision.hidden_size

    def tower_flops(self, frames: int, height: int, width: int) -> int:
        vision, patches = self.vision, frames * height * width
        sizes = self.inside, vision.intermediate_size, vision.depth
        whole = len(vision.fullatt_block_indexes)
        side = vision.window_size // vision.patch_size
        rows = [min(side, height - at) for at in range(0, height, side)]
        columns = [min(side, width - at) for at in range(0, width, side)]
        within = frames * sum((a * b) ** 2 for a in rows for b in columns)
        seen = whole * attention(patches, patches, self.inside)
        seen += (vision.depth - whole) * attention(1, within, self.inside)
        return encoder(patches, *sizes, gated=True, keys=0) + seen
