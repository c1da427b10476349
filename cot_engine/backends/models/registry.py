"""Which model families there are: a line for each architecture, and no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cot_engine.errors import ModelError

if TYPE_CHECKING:
    from cot_engine.backends.models.family import Adapter

ARCHITECTURES = {
    "LlavaForConditionalGeneration": ("llava", "llava-hf/llava-1.5-7b-hf"),
    "LlavaNextForConditionalGeneration": ("llava_next", "llava-hf/llava-v1.6-mistral-7b-hf"),
    "MllamaForConditionalGeneration": ("mllama", "Xkev/Llama-3.2V-11B-cot"),
    "Qwen2VLForConditionalGeneration": ("qwen2_vl", "Qwen/Qwen2-VL-2B-Instruct"),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_vl", "Qwen/Qwen2.5-VL-3B-Instruct"),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", "Qwen/Qwen3-VL-2B-Instruct"),
    "Idefics3ForConditionalGeneration": ("idefics3", "HuggingFaceM4/Idefics3-8B-Llama3"),
    "SmolVLMForConditionalGeneration": ("idefics3", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"),
    "Gemma3ForConditionalGeneration": ("gemma3", "google/gemma-3-4b-it"),
}
"""By the name of the model class, as config.json's `architectures` has it: the file of its family,
where its adapter is called like it, and a model of that kind."""


def adapter_for(architecture: str, text: str) -> type[Adapter]:
    """The adapter class, or a ModelError that lists what is supported."""
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"The architecture {architecture!r} is not supported.",
            f"Supported: {', '.join(sorted(ARCHITECTURES))}.",
        )
    family = import_module(f"cot_engine.backends.models.{ARCHITECTURES[architecture][0]}")
    found = getattr(family, architecture.removesuffix("ForConditionalGeneration") + "Adapter")
    if text not in found.texts:
        raise ModelError(
            f"{architecture} around a {text!r} language model is not supported.",
            f"Supported inside it: {', '.join(found.texts)}.",
        )
    return found
