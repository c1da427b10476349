"""Which model families there are: a line for each architecture, and no torch."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cot_engine.errors import ModelError

if TYPE_CHECKING:
    from cot_engine.backends.models.family import Adapter

ARCHITECTURES = {
    "LlavaForConditionalGeneration": ("llava", "llava-hf/llava-1.5-7b-hf"),
    "LlavaNextForConditionalGeneration": ("llava_next", "llava-hf/llava-v1.6-mistral-7b-hf"),
    "LlavaOnevisionForConditionalGeneration": (
        *("llava_onevision", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
    ),
    "Mistral3ForConditionalGeneration": (
        *("mistral3", "mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
    ),
    "MllamaForConditionalGeneration": ("mllama", "Xkev/Llama-3.2V-11B-cot"),
    "Qwen2VLForConditionalGeneration": ("qwen2_vl", "Qwen/Qwen2-VL-2B-Instruct"),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_vl", "Qwen/Qwen2.5-VL-3B-Instruct"),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", "Qwen/Qwen3-VL-2B-Instruct"),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3_vl_moe", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
    "InternVLForConditionalGeneration": ("internvl", "OpenGVLab/InternVL3-1B-hf"),
    "Idefics3ForConditionalGeneration": ("idefics3", "HuggingFaceM4/Idefics3-8B-Llama3"),
    "SmolVLMForConditionalGeneration": ("idefics3", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"),
    "Gemma3ForConditionalGeneration": ("gemma3", "google/gemma-3-4b-it"),
    "Glm4vForConditionalGeneration": ("glm4v", "zai-org/GLM-4.1V-9B-Thinking"),
    "Glm4vMoeForConditionalGeneration": ("glm4v", "zai-org/GLM-4.5V"),
}
"""By the name of the model class, as config.json's `architectures` has it: the file of its family,
where its adapter is called like it, and a model of that kind."""


TOWERS = {("LlavaForConditionalGeneration", "pixtral"): ("pixtral", "PixtralAdapter")}
"""An architecture around a vision tower that makes it a family of its own: its file and adapter;
mistral-community/pixtral-12b is a LLaVA by its config.json."""


CONVERTED = {
    "LlavaLlamaForCausalLM": "llava-hf/llava-1.5-7b-hf",
    "LlavaMistralForCausalLM": "llava-hf/llava-v1.6-mistral-7b-hf",
    "LlavaQwenForCausalLM": "llava-hf/llava-interleave-qwen-0.5b-hf",
    "InternVLChatModel": "OpenGVLab/InternVL3-1B-hf",
}
"""Architectures of the makers' own programs, and where such a model is in transformers' format."""


LACKING = {
    "Gemma3nForConditionalGeneration": "layers that share keys and values",
    "Gemma4ForConditionalGeneration": "heads of two sizes and layers that share keys and values",
    "Gemma4UnifiedForConditionalGeneration": "heads of two sizes and layers that share "
    "keys and values",
    "Llama4ForConditionalGeneration": "attention in chunks",
    "Qwen3_5ForConditionalGeneration": "a recurrent state, which cannot be forked at any token",
    "Lfm2VlForConditionalGeneration": "a recurrent state, which cannot be forked at any token",
    "PaliGemmaForConditionalGeneration": "prompts whose tokens see what comes after them, so that "
    "no two questions can share what was read of a picture, and no chat template",
}
"""Architectures that transformers has, and what of them has no place here yet."""


def known(architecture: str, config: dict[str, Any]) -> None:
    """Raise ModelError for an architecture that has no family here, in the light of config.json."""
    if architecture in ARCHITECTURES:
        return
    supported = f"Supported: {', '.join(sorted(ARCHITECTURES))}."
    if architecture in CONVERTED:
        raise ModelError(
            f"{architecture} is the format of the model's own program, not of transformers.",
            f"Give its conversion, as {CONVERTED[architecture]} is one.",
        )
    if config.get("auto_map"):
        raise ModelError(
            f"The architecture {architecture!r} comes with its own code, which is never run.",
            "Look for a conversion to an architecture of transformers (often called NAME-hf). "
            + supported,
        )
    if architecture in LACKING:
        raise ModelError(
            f"The architecture {architecture!r} is not supported: it has {LACKING[architecture]}.",
            supported,
        )
    near = difflib.get_close_matches(architecture, ARCHITECTURES, 1, 0.8)
    raise ModelError(
        f"The architecture {architecture!r} is not supported.",
        (f"Did you mean {near[0]}? " if near else "") + supported,
    )


def adapter_for(architecture: str, config: Any) -> type[Adapter]:
    """The adapter class for a config of transformers, or a ModelError that lists what may be inside
    such a model."""
    known(architecture, {})
    text = getattr(config.get_text_config(), "model_type", "unnamed")
    vision = getattr(getattr(config, "vision_config", None), "model_type", "unnamed")
    own = TOWERS.get((architecture, vision))
    room = "cot_engine.backends.models"
    family = import_module(f"{room}.{own[0] if own else ARCHITECTURES[architecture][0]}")
    name = own[1] if own else architecture.removesuffix("ForConditionalGeneration") + "Adapter"
    found = getattr(family, name)
    for inside, allowed, what in (
        (text, found.texts, "language model"),
        (vision, found.towers, "vision tower"),
    ):
        if allowed and inside not in allowed:
            raise ModelError(
                f"{architecture} around a {inside!r} {what} is not supported.",
                f"Supported inside it: {', '.join(allowed)}.",
            )
    return found
