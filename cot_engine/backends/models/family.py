"""All that differs between architectures: how an image becomes tokens, features, positions, masks.

Everything else in this backend drives the language model alone, with explicit embeddings,
positions, mask and cache, and never the multimodal wrapper around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from cot_engine.backends.local.kv import KVShape, RowCache, visible


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

    main: torch.Tensor | None = None
    deep: tuple[torch.Tensor, ...] = ()
    cross: torch.Tensor | None = None
    seen: torch.Tensor | None = None


@dataclass(slots=True)
class Rows:
    """One forward pass: `ids` and cache `positions` [rows, tokens], `rope` what the model calls
    positions, [rows, tokens] or [3, rows, tokens].

    `spots` are (row, column in ids, features, first, count): where image features go. `pictures`
    are, per row, all features of its prompt and the cache positions of their placeholders.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    rope: torch.Tensor
    spots: list[tuple[int, torch.Tensor, Features, int]]
    pictures: list[tuple[tuple[Features, ...], tuple[int, ...]]]


class Adapter:
    """Llava 1.5, and what the others have in common with it."""

    max_images = 16
    lm_path = "language_model"
    image_kwargs: ClassVar[dict[str, Any]] = {}
    spared = ("model.vision_tower", "model.multi_modal_projector", "lm_head")  # of quantisation
    texts = ("llama", "mistral", "qwen2")  # language models inside, where there is a choice
    prompt_depends_on_images = False

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.config = model.config
        self.text = model.config.get_text_config()
        self.lm = getattr(model.model, self.lm_path)
        self.embed = self.lm.get_input_embeddings()
        self.head = model.lm_head
        self.device, self.dtype = self.embed.weight.device, self.embed.weight.dtype
        self.window = getattr(self.text, "sliding_window", None)
        self.kinds = frozenset(getattr(self.text, "layer_types", None) or ())

    # --- images ----------------------------------------------------------------------------------

    @property
    def image_tag(self) -> str:
        return self.processor.image_token

    @property
    def placeholder(self) -> int:
        """The token id whose place image features take."""
        return self.config.image_token_id

    def prepare(self, pixels: Any, digest: str) -> Pixels:
        """Resize and normalise a PIL image for the vision tower."""
        inputs = dict(self.preprocess(pixels))
        text = self.expand(inputs)
        return Pixels(digest, inputs, text, text.count(self.placeholder_text))

    @property
    def placeholder_text(self) -> str:
        return self.image_tag

    def preprocess(self, pixels: Any) -> Any:
        return self.processor.image_processor(
            images=[pixels], return_tensors="pt", **self.image_kwargs
        )

    def expand(self, inputs: dict[str, Any]) -> str:
        return self.processor.replace_image_token(inputs, 0)

    def vision(self, inputs: dict[str, Any]) -> Any:
        """The vision tower and the projector on one image."""
        wanted = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
        moved = {k: inputs[k].to(self.device) for k in wanted if k in inputs}
        moved["pixel_values"] = moved["pixel_values"].to(self.dtype)
        return self.model.model.get_image_features(**moved, return_dict=True)

    def encode(self, image: Pixels) -> Features:
        pooled = self.vision(image.inputs).pooler_output
        pooled = torch.cat(list(pooled)) if isinstance(pooled, (list, tuple)) else pooled
        return Features(pooled.reshape(-1, pooled.shape[-1]))

    # --- the language model ----------------------------------------------------------------------

    def kv_shape(self) -> KVShape:
        text = self.text
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return KVShape(self.self_layers(), text.num_key_value_heads, dim, self.dtype, self.device)

    def self_layers(self) -> tuple[int, ...]:
        return tuple(range(self.text.num_hidden_layers))

    def rope(self, ids: list[int], images: list[Pixels]) -> tuple[torch.Tensor | None, int]:
        """A prompt's own positions [3, tokens] (None: 0, 1, 2, ...), and by how much positions
        after the prompt differ from indices."""
        return None, 0

    def mask(self, rows: Rows, columns: int) -> torch.Tensor | dict[str, torch.Tensor]:
        if "sliding_attention" not in self.kinds:
            window = None if self.kinds else self.window
            return visible(columns, rows.positions, self.dtype, window)
        return {
            "full_attention": visible(columns, rows.positions, self.dtype),
            "sliding_attention": visible(columns, rows.positions, self.dtype, self.window),
        }

    def extra(self, rows: Rows, cache: RowCache) -> dict[str, Any]:
        """Further arguments of the language model; may set `cache.layers`."""
        return {}

    def forward(self, rows: Rows, cache: RowCache, mask: Any = None, extra: Any = None) -> Any:
        """Final hidden states [rows, tokens, width]; the cache takes the new keys and values."""
        embeds = self.embed(rows.ids)
        for row, columns, features, first in rows.spots:
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


class LlavaNextAdapter(Adapter):
    image_kwargs: ClassVar = {"do_pad": True}


class Gemma3Adapter(Adapter):
    """Sliding and full layers; the tokens of an image see each other in both directions."""

    texts = ("gemma3_text",)

    @property
    def placeholder_text(self) -> str:
        return self.processor.tokenizer.image_token

    def expand(self, inputs: dict[str, Any]) -> str:
        return self.processor.full_image_sequence

    def mask(self, rows: Rows, columns: int) -> dict[str, torch.Tensor]:
        masks = super().mask(rows, columns)
        masks = masks if isinstance(masks, dict) else {"full_attention": masks}
        for row, at, _, _ in rows.spots:
            span = rows.positions[row, at]
            for mask in masks.values():
                mask[row, 0, at[:, None], span[None, :]] = 0
        return masks


class QwenAdapter(Adapter):
    """Qwen2-VL and Qwen2.5-VL: positions in three dimensions, from the image's grid."""

    spared = ("model.visual", "lm_head")
    texts = ("qwen2_vl_text", "qwen2_5_vl_text")

    def expand(self, inputs: dict[str, Any]) -> str:
        merge = self.processor.image_processor.merge_size
        return self.image_tag * (int(inputs["image_grid_thw"][0].prod()) // merge**2)

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


class Qwen3Adapter(QwenAdapter):
    """Qwen3-VL: the image also enters the first layers (deepstack)."""

    texts = ("qwen3_vl_text",)

    def encode(self, image: Pixels) -> Features:
        output = self.vision(image.inputs)
        deep = tuple(torch.cat(list(level)) for level in output.deepstack_features)
        return Features(torch.cat(list(output.pooler_output)), deep)

    def extra(self, rows: Rows, cache: RowCache) -> dict[str, Any]:
        if not rows.spots:
            return {}
        where = torch.zeros_like(rows.ids, dtype=torch.bool)
        for row, columns, _, _ in rows.spots:
            where[row, columns] = True
        levels = zip(
            *(
                [level[first : first + len(columns)] for level in features.deep]
                for _, columns, features, first in rows.spots
            ),
            strict=True,
        )
        return {
            "visual_pos_masks": where,
            "deepstack_visual_embeds": [torch.cat(level) for level in levels],
        }


class Idefics3Adapter(Adapter):
    lm_path = "text_model"
    image_kwargs: ClassVar = {"return_row_col_info": True}
    spared = ("model.vision_model", "model.connector", "lm_head")

    def preprocess(self, pixels: Any) -> Any:
        return self.processor.image_processor(
            images=[[pixels]], return_tensors="pt", **self.image_kwargs
        )


class SmolVLMAdapter(Idefics3Adapter):
    """Its processor wants a video processor and num2words; its prompt string needs neither."""

    def expand(self, inputs: dict[str, Any]) -> str:
        from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

        vision, shrink = self.config.vision_config, self.config.scale_factor
        length = (vision.image_size // vision.patch_size) ** 2 // shrink**2
        processor = self.processor
        return get_image_prompt_string(
            int(inputs["rows"][0][0]),
            int(inputs["cols"][0][0]),
            length,
            fake_token_around_image=processor.fake_image_token,
            image_token=processor.image_token,
            global_image_token=processor.global_image_token,
        )
