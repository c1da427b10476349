"""Which model families there are, by the name of the model class."""

from __future__ import annotations

from cot_engine.backends.models.family import (
    Adapter,
    Gemma3Adapter,
    Idefics3Adapter,
    LlavaNextAdapter,
    Qwen3Adapter,
    QwenAdapter,
    SmolVLMAdapter,
)
from cot_engine.errors import ModelError


def adapters() -> dict[str, type[Adapter]]:
    """By the name of the model class, as config.json's `architectures` has it."""
    from cot_engine.backends.models.mllama import MllamaAdapter

    return {
        "LlavaForConditionalGeneration": Adapter,
        "LlavaNextForConditionalGeneration": LlavaNextAdapter,
        "MllamaForConditionalGeneration": MllamaAdapter,
        "Qwen2VLForConditionalGeneration": QwenAdapter,
        "Qwen2_5_VLForConditionalGeneration": QwenAdapter,
        "Qwen3VLForConditionalGeneration": Qwen3Adapter,
        "Idefics3ForConditionalGeneration": Idefics3Adapter,
        "SmolVLMForConditionalGeneration": SmolVLMAdapter,
        "Gemma3ForConditionalGeneration": Gemma3Adapter,
    }


def adapter_for(architecture: str, text: str) -> type[Adapter]:
    """The adapter class, or a ModelError that lists what is supported."""
    known = adapters()
    if architecture not in known:
        raise ModelError(
            f"The architecture {architecture!r} is not supported.",
            f"Supported: {', '.join(sorted(known))}.",
        )
    found = known[architecture]
    if text not in found.texts:
        raise ModelError(
            f"{architecture} around a {text!r} language model is not supported.",
            f"Supported inside it: {', '.join(found.texts)}.",
        )
    return found
