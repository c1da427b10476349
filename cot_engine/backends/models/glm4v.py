"""GLM-4.1V, 4.5V and 4.6V: positions as Qwen2-VL's, a tower that shrinks before it projects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cot_engine.backends.models.family import without_video
from cot_engine.backends.models.flops import encoder, linear
from cot_engine.backends.models.places import bound_film
from cot_engine.backends.models.qwen2_vl import Qwen2VLAdapter


class Glm4vAdapter(Qwen2VLAdapter):
    """Its replies end where the next turn would begin, which is in generation_config.json alone;
    without that file they would go on as the user's."""

    texts = ("glm4v_text",)
    ends = ("<|endoftext|>", "<|user|>", "<|observation|>")
    thought = "<think></think>\n"

    bound = staticmethod(bound_film)

    @classmethod
    def load_processor(cls, folder: Path, config: Any) -> Any:
        return without_video(folder, "<|image|>")

    @property
    def inside(self) -> int:
        return self.vision.hidden_size

    def tower_flops(self, frames: int, height: int, width: int) -> int:
        sizes = self.inside, self.vision.out_hidden_size, self.vision.depth
        return encoder(frames * height * width, *sizes, gated=True)

    def merger_flops(self, patches: int) -> int:
        merge, wide = self.vision.spatial_merge_size**2, self.vision.out_hidden_size
        gated = 3 * linear(patches // merge, wide, self.vision.intermediate_size)
        return linear(patches // merge, merge * self.inside, wide, wide) + gated


class Glm4vMoeAdapter(Glm4vAdapter):
    """With experts, some of which every token goes through (`flops` counts them)."""

    texts = ("glm4v_moe_text",)
