"""LLaVA-OneVision: a picture alone as a whole and in tiles, one beside others as a whole only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from cot_engine.backends.models.family import (
    PLAIN,
    Pictured,
    Pixels,
    joined,
    padded,
    settings_of,
    without_video,
)
from cot_engine.backends.models.llava import LlavaAdapter


class LlavaOnevisionAdapter(LlavaAdapter):
    """Its processor wants a video processor; the prompt string of a picture needs none."""

    texts = (*PLAIN, "qwen3")
    counting = (
        "num_image_tokens, vision_feature_select_strategy and vision_aspect_ratio of "
        "processor_config.json, or image_grid_pinpoints"
    )
    apart = True

    @classmethod
    def load_processor(cls, folder: Path, config: Any) -> Any:
        from transformers.models.llava_onevision import processing_llava_onevision as library

        processor = without_video(folder, "<image>")
        tower, said = config.vision_config, settings_of(folder)
        own: Any = object.__new__(library.LlavaOnevisionProcessor)
        own.image_processor, own.image_token = processor.image_processor, processor.image_token
        own.num_image_tokens = said.get("num_image_tokens") or (
            (tower.image_size // tower.patch_size) ** 2
        )
        for name in ("vision_feature_select_strategy", "vision_aspect_ratio"):
            setattr(own, name, said.get(name) or getattr(config, name))
        processor.replace_image_token = own.replace_image_token
        return processor

    def prepare(self, pixels: Any, digest: str, together: int = 1) -> Pixels:
        """Other tokens and features beside others than alone, and so another digest."""
        if together > 1:
            digest = hashlib.sha256(f"{digest} beside others".encode()).hexdigest()[:16]
        return super().prepare(pixels, digest, together)

    def crowded(self, pixels: Any) -> Any:
        """With a small other, of which nothing is kept: how many there are does not matter."""
        both = [[pixels, Image.new("RGB", (8, 8))]]
        found = self.processor.image_processor(images=both, return_tensors="pt")
        return {**found, **{key: found[key][:1] for key in ("pixel_values", "image_sizes")}}

    looked_at: ClassVar = (*LlavaAdapter.looked_at, "batch_num_images")

    def stock_inputs(self, ids: torch.Tensor, rows: Sequence[Pictured]) -> dict[str, torch.Tensor]:
        """Each padded to the picture of most tiles."""
        tiles = [image.inputs["pixel_values"] for row in rows for image in row.images]
        most = max(each.shape[1] for each in tiles)
        pixels = torch.cat([padded(each, (1, most)) for each in tiles])
        counts = torch.tensor([len(row.images) for row in rows if row.images])
        return {"pixel_values": pixels, "batch_num_images": counts, **joined(rows, "image_sizes")}
