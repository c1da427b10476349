"""Idefics 3 and SmolVLM: a picture as a whole and in tiles, each a few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from cot_engine.backends.models.family import Adapter, Pictured, Pixels, by_row, without_video
from cot_engine.backends.models.flops import linear, vit
from cot_engine.backends.models.places import bound_edge


class Idefics3Adapter(Adapter):
    lm_path = "text_model"
    counting = (
        "image_seq_len of processor_config.json, or scale_factor, image_size and patch_size of "
        "config.json"
    )
    image_kwargs: ClassVar = {"return_row_col_info": True}
    spared = ("model.vision_model", "model.connector", "lm_head")

    def preprocess(self, pixels: Any) -> Any:
        return self.processor.image_processor(images=[[pixels]], return_tensors="pt", **self.told)

    def bounds(self, most: int) -> dict[str, Any]:
        return bound_edge(self.processor.image_processor.to_dict(), most)

    def image_flops(self, image: Pixels) -> int:
        """All tiles that hold anything; empty ones are padding and dropped."""
        tiles = image.inputs["pixel_values"].flatten(0, 1).flatten(1)
        shrink, vision = self.config.scale_factor**2, self.vision
        patches = (vision.image_size // vision.patch_size) ** 2
        wide = vision.hidden_size * shrink
        connector = linear(patches // shrink, wide, self.text.hidden_size)
        return int((tiles != 0).any(-1).sum()) * (vit(vision, patches) + connector)

    def stock_inputs(self, ids: torch.Tensor, rows: Sequence[Pictured]) -> dict[str, torch.Tensor]:
        """By row; empty tiles are skipped."""
        return by_row(rows, "pixel_values", "pixel_attention_mask")


class SmolVLMAdapter(Idefics3Adapter):
    """Its processor wants a video processor and num2words; its prompt string needs neither."""

    @classmethod
    def load_processor(cls, folder: Path, config: Any) -> Any:
        return without_video(folder, "<image>")

    def expand(self, inputs: dict[str, Any]) -> str:
        from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

        vision, shrink = self.vision, self.config.scale_factor
        length = (vision.image_size // vision.patch_size) ** 2 // shrink**2
        own = self.processor.tokenizer
        return get_image_prompt_string(
            int(inputs["rows"][0][0]),
            int(inputs["cols"][0][0]),
            length,
            fake_token_around_image=getattr(own, "fake_image_token", "<fake_token_around_image>"),
            image_token=self.image_tag,
            global_image_token=getattr(own, "global_image_token", "<global-img>"),
        )
