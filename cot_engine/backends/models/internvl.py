"""InternVL in transformers' own format: a picture in tiles, each shuffled into a few tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from cot_engine.backends.models.family import PLAIN, Adapter, Pixels, without_video
from cot_engine.backends.models.flops import encoder, linear
from cot_engine.backends.models.places import bound_tiles


class InternVLAdapter(Adapter):
    """Its processor wants a video processor; its prompt string needs none."""

    texts = (*PLAIN, "qwen3")
    towers = ("internvl_vision",)
    image_kwargs: ClassVar = {"crop_to_patches": True}
    counting = "image_size, patch_size and downsample_ratio of config.json"

    @classmethod
    def load_processor(cls, folder: Path, config: Any) -> Any:
        processor = without_video(folder, "<IMG_CONTEXT>")
        named = getattr(processor.tokenizer, "context_image_token", None)
        processor.image_token = named or processor.image_token
        return processor

    def bounds(self, most: int) -> dict[str, Any]:
        return bound_tiles(self.processor.image_processor.to_dict(), most)

    def expand(self, inputs: dict[str, Any]) -> str:
        own = self.processor.tokenizer
        start = getattr(own, "start_image_token", "<img>")
        end = getattr(own, "end_image_token", "</img>")
        return f"{start}{self.image_tag * (self._each * len(inputs['pixel_values']))}{end}"

    @property
    def _patches(self) -> int:
        """Of a tile."""
        (height, width), (tall, wide) = self.vision.image_size, self.vision.patch_size
        return (height // tall) * (width // wide)

    @property
    def _each(self) -> int:
        """Tokens of a tile."""
        return int(self._patches * self.config.downsample_ratio**2)

    def image_flops(self, image: Pixels) -> int:
        """All tiles, the whole picture among them; the class token is dropped after the tower."""
        vision, patches = self.vision, self._patches
        tall, across = vision.patch_size
        wide = vision.hidden_size * patches // self._each
        tower = linear(patches, vision.num_channels * tall * across, vision.hidden_size)
        tower += encoder(
            patches + 1, vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers
        )
        projector = linear(self._each, wide, *(2 * [self.text.hidden_size]))
        return len(image.inputs["pixel_values"]) * (tower + projector)
