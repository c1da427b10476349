"""What every family of models has in common, and what its own file may say otherwise.

How an image becomes tokens, features, positions and masks, what that costs, and what loading needs.
All else in the backend drives the language model alone, with explicit embeddings, positions, mask
and cache, and never the multimodal wrapper around it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Protocol

import torch
from PIL.Image import Resampling

from cot_engine.backends.local.attention import ATTENTION, Seats
from cot_engine.backends.local.kv import KVShape, RowCache, visible
from cot_engine.backends.models.flops import Flops
from cot_engine.backends.models.places import smaller
from cot_engine.errors import ModelError


@dataclass(frozen=True, slots=True)
class Pixels:
    """One image, preprocessed. `inputs` are tensors for the vision tower; `text` is what the image
    expands to in the prompt, with `tokens` placeholders in it."""

    digest: str
    inputs: dict[str, Any]
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Features:
    """One image, encoded. `main` [tokens, width] takes the placeholders' places; `deep` are added
    to the first layers' states there (Qwen3-VL); `cross` [layers, 2, heads, tokens, dim] are the
    keys and values of cross-attention layers, of which `seen` [tokens] are real (Mllama)."""

    main: torch.Tensor | Any = None
    deep: tuple[torch.Tensor, ...] = ()
    cross: torch.Tensor | Any = None
    seen: torch.Tensor | Any = None

    @property
    def nbytes(self) -> int:
        return sum(
            t.nbytes for t in (self.main, *self.deep, self.cross, self.seen) if t is not None
        )

    def crossed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`cross` and `seen`, of a model that crosses."""
        assert self.cross is not None and self.seen is not None
        return self.cross, self.seen


@dataclass(frozen=True, slots=True)
class Looking:
    """What rows see through cross-attention layers: `kv` [layers, 2, groups, heads, columns, dim],
    an additive `mask` [groups, 1, 1, columns], who sits where, and 1 for rows that have pictures,
    else 0 [rows]."""

    kv: torch.Tensor
    mask: torch.Tensor
    some: torch.Tensor
    seats: Seats


@dataclass(slots=True)
class Pass:
    """One forward pass: `ids` and `positions` [rows, tokens] in the rows' own slots, `rope` what
    the model calls positions, [rows, tokens] or [3, rows, tokens].

    `spots` are (row, column in ids, features, first): where image features go. `pictures` are, per
    row, all features of its prompt and the places of their placeholders in it. `starts` [rows, 1]:
    how many tokens of a prefix come before a row's own (None: none). `looking`: what rows of one
    token see of pictures.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    rope: torch.Tensor
    spots: list[tuple[int, torch.Tensor, Features, int]]
    pictures: list[tuple[tuple[Features, ...], tuple[int, ...]]]
    starts: torch.Tensor | None = None
    looking: Looking | None = None

    @property
    def at(self) -> torch.Tensor:
        """The tokens' places in their sequences [rows, tokens]."""
        return self.positions if self.starts is None else self.positions + self.starts


class Pictured(Protocol):
    """A row of a batch: its token ids and its images, in the prompt's order."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def images(self) -> Sequence[Pixels]: ...


PLAIN = ("llama", "mistral", "qwen2")
"""Language models that need nothing of their own here."""


class Adapter(ABC):
    """A model and its processor, driven as their family wants it.

    `texts` are the language models that may be inside, `towers` the vision towers (empty: any),
    `counting` the settings that say how many tokens a picture takes, `spared` the modules that
    quantisation leaves alone, `lm_path` where the language model is, `image_kwargs` what the image
    processor is told besides, `looked_at` what of its work the tower takes.
    `prompt_depends_on_images`: even the tokens before an image do. `apart`: a picture alone is
    prepared otherwise than one beside others; `max_pixels`: so many of it are looked at. `ends` are
    tokens that end a reply, named by its files or not; `thought` is an empty thought as its makers
    write it, for models that open one of themselves.
    """

    texts: ClassVar[tuple[str, ...]] = PLAIN
    towers: ClassVar[tuple[str, ...]] = ()
    counting: ClassVar[str] = "patch_size and merge_size of preprocessor_config.json"
    spared: ClassVar[tuple[str, ...]] = (
        *("model.vision_tower", "model.multi_modal_projector"),
        "lm_head",
    )
    lm_path: ClassVar[str] = "language_model"
    image_kwargs: ClassVar[dict[str, Any]] = {}
    ends: ClassVar[tuple[str, ...]] = ()
    thought: ClassVar[str] = ""
    looked_at: ClassVar[tuple[str, ...]] = (
        *("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask"),
    )
    prompt_depends_on_images: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    in_parts: ClassVar[bool] = True
    max_images = 16
    max_pixels: int | None = None

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.config = model.config
        self.text, self.vision = model.config.get_text_config(), model.config.vision_config
        self.flops = Flops(self.text)
        self.lm = getattr(model.model, self.lm_path)
        self.lm.config._attn_implementation = ATTENTION
        self.embed = self.lm.get_input_embeddings()
        self.head = model.lm_head
        self.device, self.dtype = self.embed.weight.device, self.embed.weight.dtype
        self.window = getattr(self.text, "sliding_window", None)
        self.kinds = frozenset(getattr(self.text, "layer_types", None) or ())

    @classmethod
    def load_processor(cls, folder: Path, config: Any) -> Any:
        """What comes with a checkpoint to make tokens and pixels: an object with `tokenizer`,
        `image_processor`, `image_token` and `chat_template`. Raises whatever the library does."""
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)

    # --- images ----------------------------------------------------------------------------------

    @property
    def image_tag(self) -> str:
        return self.processor.image_token

    @property
    def placeholder(self) -> int:
        """The token id whose place image features take."""
        return self.config.image_token_id

    def prepare(self, pixels: Any, digest: str, together: int = 1) -> Pixels:
        """Resize and normalise a PIL image for the vision tower; `together` are in its prompt."""
        if (most := self.max_pixels) is not None:
            digest = hashlib.sha256(f"{digest} within {most}".encode()).hexdigest()[:16]
            if (
                not self.bounds(most)
                and (size := smaller(pixels.width, pixels.height, most)) != pixels.size
            ):
                pixels = pixels.resize(size, Resampling.BICUBIC)
        inputs = dict(self.preprocess(pixels) if together == 1 else self.crowded(pixels))
        text = self.expand(inputs)
        return Pixels(digest, inputs, text, text.count(self.placeholder_text))

    @property
    def placeholder_text(self) -> str:
        return self.image_tag

    def preprocess(self, pixels: Any) -> Any:
        return self.processor.image_processor(images=[pixels], return_tensors="pt", **self.told)

    def bounds(self, most: int) -> dict[str, Any]:
        """What the image processor is told so that it makes no more pixels of a picture; nothing
        where it never makes one larger, and it is enough to show it a smaller one."""
        return {}

    @property
    def told(self) -> dict[str, Any]:
        """What the image processor is told: `image_kwargs`, and how many pixels are wanted."""
        return {**self.image_kwargs, **(self.bounds(self.max_pixels) if self.max_pixels else {})}

    def crowded(self, pixels: Any) -> Any:
        """`preprocess` for a picture that stands beside others in its prompt."""
        return self.preprocess(pixels)

    def expand(self, inputs: dict[str, Any]) -> str:
        return self.processor.replace_image_token(inputs, 0)

    @abstractmethod
    def image_flops(self, image: Pixels) -> int:
        """What `encode` costs."""

    def crossed(self, images: Sequence[Pixels]) -> int:
        """How many vision tokens cross-attention layers hold of these images."""
        return 0

    def crossing_shape(self) -> KVShape | None:
        """Of the cross-attention layers' keys and values, if there are such layers."""
        return None

    def beside(
        self, features: Sequence[Features], placeholders: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a prompt's images, the keys and values [layers, 2, heads, tokens, dim] of
        cross-attention layers, and which of them [tokens] what comes behind the prompt sees."""
        raise NotImplementedError  # for those with a `crossing_shape` only

    def look(self, inputs: dict[str, Any]) -> Any:
        """The vision tower and the projector on one image."""
        moved = {k: inputs[k].to(self.device) for k in self.looked_at if k in inputs}
        moved["pixel_values"] = moved["pixel_values"].to(self.dtype)
        return self.model.model.get_image_features(**moved, return_dict=True)

    def encode(self, image: Pixels) -> Features:
        """Its features, as many as its placeholders: with others in their places the model would
        answer, but to another picture. Raises ModelError."""
        found = self.features(image)
        if found.main is not None and len(found.main) != image.tokens:
            raise ModelError(
                f"The prompt has {image.tokens:,} places for a picture of which the model makes "
                f"{len(found.main):,} features.",
                f"Most likely misstated: {self.counting}. Compare them with the original "
                "checkpoint's.",
            )
        return found

    def features(self, image: Pixels) -> Features:
        """What the vision tower makes of an image."""
        pooled = self.look(image.inputs).pooler_output
        pooled = torch.cat(list(pooled)) if isinstance(pooled, (list, tuple)) else pooled
        return Features(pooled.reshape(-1, pooled.shape[-1]))

    # --- the language model ----------------------------------------------------------------------

    def kv_shape(self) -> KVShape:
        text = self.text
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return KVShape(self.self_layers(), text.num_key_value_heads, dim, self.dtype, self.device)

    def self_layers(self) -> tuple[int, ...]:
        return tuple(range(self.text.num_hidden_layers))

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each self-attention layer, how far it looks back."""
        layers = self.self_layers()
        if "sliding_attention" not in self.kinds:
            return (None if self.kinds else self.window,) * len(layers)
        kinds = [self.text.layer_types[layer] for layer in layers]
        return tuple(self.window if kind == "sliding_attention" else None for kind in kinds)

    def rope(self, ids: list[int], images: list[Pixels]) -> tuple[torch.Tensor | None, int]:
        """A prompt's own positions [3, tokens] (None: 0, 1, 2, ...), and by how much positions
        after the prompt differ from indices."""
        return None, 0

    def mask(self, rows: Pass, columns: int) -> torch.Tensor | dict[str, torch.Tensor]:
        if "sliding_attention" not in self.kinds:
            window = None if self.kinds else self.window
            return visible(columns, rows.positions, self.dtype, window)
        return {
            "full_attention": visible(columns, rows.positions, self.dtype),
            "sliding_attention": visible(columns, rows.positions, self.dtype, self.window),
        }

    def extra(self, rows: Pass, cache: RowCache) -> dict[str, Any]:
        """Further arguments of the language model; may set `cache.layers`."""
        return {}

    def forward(self, rows: Pass, cache: RowCache, mask: Any = None, extra: Any = None) -> Any:
        """Final hidden states [rows, tokens, width]; the cache takes the new keys and values."""
        embeds = self.embed(rows.ids)
        for row, columns, features, first in rows.spots:
            assert features.main is not None  # else it has no spots
            part = features.main[first : first + len(columns)]
            embeds[row, columns] = part.to(embeds.dtype)
        return self.lm(
            inputs_embeds=embeds,
            attention_mask=self.mask(rows, cache.columns) if mask is None else mask,
            position_ids=rows.rope,
            past_key_values=cache,
            use_cache=True,
            **(self.extra(rows, cache) if extra is None else extra),
        ).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, width] -> [rows, vocabulary]."""
        return self.head(hidden)

    # --- the whole model -------------------------------------------------------------------------

    def stock_inputs(self, ids: torch.Tensor, rows: Sequence[Pictured]) -> dict[str, torch.Tensor]:
        """The pictures of a batch as the unchanged model's own forward takes them, for training.

        `ids` [rows, tokens] are those of the rows, padded behind. At least one has a picture.
        """
        return joined(rows, "pixel_values")

    def marked(self, ids: torch.Tensor) -> torch.Tensor:
        """1 where an image's feature belongs, else 0."""
        return (ids == self.placeholder).int()


def joined(rows: Sequence[Pictured], *keys: str) -> dict[str, torch.Tensor]:
    """Some inputs of all pictures, one behind the other."""
    images = [image for row in rows for image in row.images]
    return {key: torch.cat([torch.as_tensor(i.inputs[key]) for i in images]) for key in keys}


def by_row(rows: Sequence[Pictured], *keys: str) -> dict[str, torch.Tensor]:
    """Some inputs [1, n, ...] of each row's pictures, joined and stacked: [rows, largest n, ...];
    zeros for rows without."""
    found = {}
    for key in keys:
        each = [[image.inputs[key][0] for image in row.images] for row in rows]
        some = [torch.cat(one) if one else None for one in each]
        most = max(len(one) for one in some if one is not None)
        like = next(one for one in some if one is not None)
        empty = like.new_zeros(0, *like.shape[1:])
        found[key] = torch.stack([padded(empty if x is None else x, (most,)) for x in some])
    return found


def padded(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """With zeros behind, so that its first dimensions have these sizes."""
    grown = tensor.new_zeros(*shape, *tensor.shape[len(shape) :])
    grown[tuple(slice(n) for n in tensor.shape[: len(shape)])] = tensor
    return grown


def without_video(folder: Path, image_token: str) -> SimpleNamespace:
    """In place of a processor that insists on a video processor: its other two parts.

    `image_token` where the tokenizer names none.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return SimpleNamespace(
        tokenizer=tokenizer,
        image_processor=_image_processor(folder),
        image_token=getattr(tokenizer, "image_token", None) or image_token,
        chat_template=None,
    )


def settings_of(folder: Path) -> dict[str, Any]:
    """What processor_config.json says, and what stands beside it for the processor as a whole."""
    from transformers import ProcessorMixin

    return dict(ProcessorMixin.get_processor_dict(folder)[0])


def _image_processor(folder: Path) -> Any:
    """Under the name it has now: Qwen2.5-VL's of early 2025 had one of its own."""
    from transformers import AutoImageProcessor
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    settings, _ = ImageProcessingMixin.get_image_processor_dict(folder)
    renamed = settings.get("image_processor_type") == "Qwen2_5_VLImageProcessor"
    kind: Any = Qwen2VLImageProcessorPil if renamed else AutoImageProcessor
    return kind.from_pretrained(folder, **({} if renamed else {"trust_remote_code": False}))
