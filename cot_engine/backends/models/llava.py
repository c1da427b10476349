"""LLaVA 1.5 and its like: one square picture, one row of features, a plain language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cot_engine.backends.models.family import Adapter, Pixels
from cot_engine.backends.models.flops import linear, vit


class LlavaAdapter(Adapter):
    towers = ("clip_vision_model", "siglip_vision_model")
    counting = (
        "num_additional_image_tokens, patch_size and vision_feature_select_strategy of "
        "processor_config.json, or vision_feature_select_strategy of config.json"
    )

    @classmethod
    def load_processor(cls, folder: Path, config: Any) -> Any:
        processor = super().load_processor(folder, config)
        if processor.patch_size is None:  # checkpoints of before 2025
            processor.patch_size = config.vision_config.patch_size
            processor.vision_feature_select_strategy = config.vision_feature_select_strategy
            # CLIP's class token; SigLIP has none.
            processor.num_additional_image_tokens = int(_has_class(config.vision_config))
        return processor

    def image_flops(self, image: Pixels) -> int:
        """Of one crop or several; CLIP puts a class token before the patches, SigLIP does not."""
        config, vision = self.config, self.vision
        *_, crops, _, height, width = image.inputs["pixel_values"].shape
        patches = (height // vision.patch_size) * (width // vision.patch_size)
        own = int(_has_class(vision))
        default = config.vision_feature_select_strategy == "default"
        levels = config.vision_feature_layer
        wide = vision.hidden_size * (1 if isinstance(levels, int) else len(levels))
        projector = linear(patches + own - default, wide, *(2 * [self.text.hidden_size]))
        return crops * (vit(vision, patches, own) + projector)


def _has_class(vision: Any) -> bool:
    return vision.model_type == "clip_vision_model"
