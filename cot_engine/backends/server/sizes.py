"""The sizes of the model that a server runs, by its folder: what it counts and costs, with none of
its weights. Imports torch and transformers.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import transformers

from cot_engine.backends.local.folder import read_config
from cot_engine.backends.local.hub import find_folder
from cot_engine.backends.local.libraries import explained, quietly
from cot_engine.backends.local.opener import model_path
from cot_engine.backends.local.processor import end_tokens, load_processor, template_of
from cot_engine.backends.local.text import ChatText
from cot_engine.backends.models.family import Pixels
from cot_engine.backends.models.registry import adapter_for, known
from cot_engine.core.requests import Prompt
from cot_engine.images.load import Image

_KEPT = 256  # of pictures and texts, each
_CONFIG = "Give the folder of the model that the server runs; its weights need not be there."


class Sizes:
    """A model without its numbers. Raises ModelError for a folder that does not describe one.

    Counts a prompt as the local backend does, from the chat format to the places of pictures: a
    server that has the same files counts the same.
    """

    def __init__(self, model: str | Path) -> None:
        folder = find_folder(model_path(model), download=False)
        config = read_config(folder)
        self.architecture = config["architectures"][0]
        known(self.architecture, config)
        with quietly(), explained(folder, "config.json describes no network", _CONFIG):
            parsed = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            kind = adapter_for(self.architecture, parsed)
            processor = load_processor(folder, kind, parsed)
            with torch.device("meta"):
                network = getattr(transformers, self.architecture)(parsed)
        self.adapter = kind(network.eval(), processor)
        template = template_of(processor.chat_template, folder)
        ends = end_tokens(folder, config, processor.tokenizer, kind.ends)
        self.chat = ChatText(
            processor.tokenizer, self.adapter.image_tag, template, ends, kind.thought
        )
        self.chat.check()
        self.context = int(self.adapter.text.max_position_embeddings)
        self.max_images = self.adapter.max_images
        # The name of the weights is not known from here; that of the network is.
        self.digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:16]
        self._pixels: OrderedDict[Any, Pixels] = OrderedDict()
        self._turns: OrderedDict[Any, int] = OrderedDict()

    def tokens(self, prompt: Prompt, reply: str) -> int:
        """How many a prompt and the reply so far take."""
        together = len(prompt.images)
        key = prompt.text, tuple(image.digest for image in prompt.images)
        if key not in self._turns:
            texts = tuple(self.pixels(image, together).text for image in prompt.images)
            _keep(self._turns, key, len(self.chat.turn(prompt.text, texts)))
        return self._turns[key] + (self.piece(reply) if reply else 0)

    def piece(self, text: str) -> int:
        """How many a piece of text takes in the middle of another."""
        return len(self.chat.continuation(text))

    def text(self, prompt: Prompt, new: int, context: int, decoded: int) -> int:
        """FLOPs of the language model: `new` tokens behind `context` that are held, then `decoded`
        ones."""
        flops = self.adapter.flops
        together = len(prompt.images)
        crossed = self.adapter.crossed([self.pixels(each, together) for each in prompt.images])
        read = flops.prefill(new, context, crossed) + flops.head(1)
        return read + (flops.steps(new + context, decoded, crossed) if decoded else 0)

    def image(self, image: Image) -> int:
        """FLOPs of encoding a picture."""
        return self.adapter.image_flops(self.pixels(image, 1))

    def pixels(self, image: Image, together: int) -> Pixels:
        """A picture as the model is shown it, beside others or alone."""
        key = image.digest, self.adapter.apart and together > 1
        if key not in self._pixels:
            _keep(self._pixels, key, self.adapter.prepare(image.pixels, image.digest, together))
        return self._pixels[key]


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    kept[key] = value
    if len(kept) > _KEPT:
        kept.popitem(last=False)
