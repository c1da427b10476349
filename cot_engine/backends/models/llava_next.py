"""LLaVA-NeXT: a picture as a whole and in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from cot_engine.backends.models.family import Pictured, joined, padded
from cot_engine.backends.models.llava import LlavaAdapter


class LlavaNextAdapter(LlavaAdapter):
    image_kwargs: ClassVar = {"do_pad": True}

    def stock_inputs(self, ids: torch.Tensor, rows: Sequence[Pictured]) -> dict[str, torch.Tensor]:
        """Each padded to the picture of most tiles."""
        tiles = [image.inputs["pixel_values"] for row in rows for image in row.images]
        most = max(each.shape[1] for each in tiles)
        pixels = torch.cat([padded(each, (1, most)) for each in tiles])
        return {"pixel_values": pixels, **joined(rows, "image_sizes")}
