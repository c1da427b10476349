"""Pixtral: a picture of any shape, a token a patch, the end of each row of patches marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cot_engine.backends.models.family import (
    Adapter,
    Pictured,
    Pixels,
    joined,
    padded,
    settings_of,
    without_video,
)
from cot_engine.backends.models.flops import encoder, linear, patches


class PixtralAdapter(Adapter):
    """As published it is a LLaVA around a tower called pixtral."""

    towers = ("pixtral",)
    counting = "patch_size and spatial_merge_size of processor_config.json"

    @classmethod
    def load_processor(cls, folder: Path, config: Any) -> Any:
        """Its processor wants torchvision; what it does with a picture needs none."""
        processor, said = without_video(folder, "[IMG]"), settings_of(folder)
        patch = said.get("patch_size") or config.vision_config.patch_size
        processor.side = patch * (said.get("spatial_merge_size") or cls.merge(config))
        processor.image_token = said.get("image_token", "[IMG]")
        processor.image_break_token = said.get("image_break_token", "[IMG_BREAK]")
        processor.image_end_token = said.get("image_end_token", "[IMG_END]")
        return processor

    @staticmethod
    def merge(config: Any) -> int:
        """How many patches of a row become one token."""
        return 1

    def preprocess(self, pixels: Any) -> Any:
        """To a whole number of tokens, whatever the image processor's own patches are."""
        return self.processor.image_processor(
            images=[pixels], return_tensors="pt", patch_size=self.processor.side
        )

    def expand(self, inputs: dict[str, Any]) -> str:
        own = self.processor
        height, width = (int(n) // own.side for n in inputs["image_sizes"][0])
        row = own.image_token * width
        return own.image_break_token.join([row] * height) + own.image_end_token

    def _patches(self, image: Pixels) -> int:
        height, width = (int(n) for n in image.inputs["image_sizes"][0])
        return (height // self.vision.patch_size) * (width // self.vision.patch_size)

    def image_flops(self, image: Pixels) -> int:
        vision, count = self.vision, self._patches(image)
        levels = self.config.vision_feature_layer
        wide = vision.hidden_size * (1 if isinstance(levels, int) else len(levels))
        sizes = vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers
        tower = patches(vision, count) + encoder(count, *sizes, gated=True)
        return tower + self.projector_flops(count, wide)

    def projector_flops(self, patches: int, wide: int) -> int:
        return linear(patches, wide, *(2 * [self.text.hidden_size]))

    def stock_inputs(self, ids: torch.Tensor, rows: Sequence[Pictured]) -> dict[str, torch.Tensor]:
        """Each padded to the highest and the widest."""
        found = joined(rows, "image_sizes")
        height, width = (int(n) for n in found["image_sizes"].amax(0))
        each = [image.inputs["pixel_values"] for row in rows for image in row.images]
        pixels = torch.cat([padded(one, (1, one.shape[1], height, width)) for one in each])
        return {"pixel_values": pixels, **found}
