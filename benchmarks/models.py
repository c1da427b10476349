"""The models that are timed: a checkpoint folder, or a shape filled with random numbers in memory.

Random models write random words. Their vocabulary and output are arranged so that two programs
driving them do the same amount of work: nothing they write can end a turn or close a stage, and
every token they write is a word of its own, so that a text has as many tokens read as written.
"""

from __future__ import annotations

import itertools
import math
import string
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from cot_engine import scenes
from cot_engine.backends.local import loading
from cot_engine.backends.local.backend import LocalBackend
from cot_engine.backends.local.loading import Loaded
from cot_engine.backends.local.text import ChatText
from cot_engine.backends.models.registry import adapter_for
from cot_engine.core.problem import Problem
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.engine.facade import Engine, model_path
from cot_engine.images.load import load_image
from cot_engine.judging import prompts

RANDOM = ("large", "llava-7b", "qwen-7b", "mllama-11b", "tiny", "qwen-tiny", "mllama-tiny")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
)
_NORM = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_LENGTHS = {"SUMMARY": 49, "CAPTION": 64, "REASONING": 80, "CONCLUSION": 57}


@dataclass(frozen=True)
class Subject:
    """A model under test, with the problems and the way it is asked."""

    name: str
    engine: Engine
    plan: Plan
    mode: str  # "trained" or "prompted"
    problems: tuple[Problem, ...]
    temperature: float

    @property
    def backend(self) -> LocalBackend:
        assert isinstance(self.engine.backend, LocalBackend)
        return self.engine.backend

    def sync(self) -> None:
        """Wait until the device has done what it was told: kernels run behind Python's back."""
        if self.backend.adapter.device.type == "cuda":
            torch.cuda.synchronize()

    def describe(self) -> dict[str, Any]:
        info, model = self.backend.info, self.backend.adapter.model
        return {
            "name": self.name,
            "architecture": info.architecture,
            "parameters": sum(p.numel() for p in model.parameters()),
            "device": info.device,
            "dtype": info.dtype,
            "mode": self.mode,
            "temperature": self.temperature,
            "lengths": {stage.tag: stage.length for stage in self.plan},
        }


def subject(
    name: str, problems: int, device: str = "cpu", dtype: str = "auto", temperature: float = 0.6
) -> Subject:
    """The model `name`: "bundled", one of RANDOM, or the folder of a checkpoint."""
    if name not in RANDOM:
        engine = Engine.from_pretrained(model_path(name), device=device, dtype=dtype)
        asked = tuple(scene(i) for i in range(problems))
        trace = engine.solve(asked[0].images[0], asked[0].question, strategy="greedy").trace
        mode = trace.started.mode
        return Subject(Path(name).name, engine, DEFAULT_PLAN, mode, asked, temperature)
    return subject_of(random_model(name, device, dtype), problems, temperature)


def random_model(name: str, device: str = "cpu", dtype: str = "auto") -> Loaded:
    """One of RANDOM, made where it will live."""
    where = loading.pick_device(device)
    network, processor = _BUILD[name](where, loading.pick_dtype(dtype, where))
    _arrange(network)
    adapter = adapter_for(type(network).__name__, network.config)(
        network.eval().requires_grad_(False), processor
    )
    text = ChatText(processor.tokenizer, adapter.image_tag, processor.chat_template, {2})
    return Loaded(adapter, text, type(network).__name__, name, "random", ())


def subject_of(
    loaded: Loaded, problems: int, temperature: float = 0.6, in_flight: int = 32
) -> Subject:
    """A random model with its problems; its engine takes what memory is free now."""
    tiny = loaded.name.endswith("tiny")
    plan = Plan(
        tuple(replace(s, length=6 if tiny else _LENGTHS[s.tag]) for s in DEFAULT_PLAN.stages)
    )
    asked = tuple(noise(i) for i in range(problems))
    engine = Engine(LocalBackend(loaded), in_flight=in_flight)
    return Subject(loaded.name, engine, plan, "prompted", asked, temperature)


def scene(index: int) -> Problem:
    """A question about the bundled model's own world, from the part that is never trained on."""
    scene = scenes.sample(11, index, "val")
    return Problem(f"scene-{index}", scene.question, (load_image(scene.image),))


def noise(index: int) -> Problem:
    pixels = np.random.default_rng(index).integers(0, 255, (448, 448, 3), dtype=np.uint8)
    question = f"What does picture number {index} show, and how many of them are there?"
    return Problem(f"noise-{index}", question, (load_image(PIL.Image.fromarray(pixels)),))


# --- random models -------------------------------------------------------------------------------


def _tokenizer(size: int, image: str) -> tf.PreTrainedTokenizerFast:
    """`size` entries: specials, bytes, the words of our prompts, and made-up words with the space
    before them."""
    specials = ["<pad>", "<s>", "</s>", image]
    letters = math.ceil(math.log(size, 26))
    words = ("Ġ" + "".join(w) for w in itertools.product(string.ascii_lowercase, repeat=letters))
    own = [*specials, *_spoken()]
    tokens = [*own, *itertools.islice((w for w in words if w not in own), size - len(own))]
    core = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], ignore_merges=True)
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": image}, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _spoken() -> list[str]:
    """The bytes, and the pieces that our prompts fall into, so that they are as short as in a
    real model's vocabulary."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    problem = noise(0)
    said = [prompts.answer_prompt(problem, DEFAULT_PLAN, "prompted", "normal").text]
    for stage in DEFAULT_PLAN:
        said += [f"\n\n{stage.open} {stage.close}\n\n", f" {stage.tag}:"]
        for how in (prompts.REPLY_NUMBER, prompts.REPLY_RATIONALE):
            said.append(prompts.judge_head(problem, (1,), " ", stage.question, how).text)
    said.append(prompts.judge_tail(" ", " ") + "user assistant Attempt 3:\n")
    pieces = dict.fromkeys(piece for text in said for piece, _ in spell(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*alphabet, *(piece for piece in pieces if piece not in alphabet)]


def _arrange(network: torch.nn.Module) -> None:
    """Open the gates; let nothing be written but whole words.

    Logits of random weights spread around 0, and only the 50 highest are ever drawn: a token
    whose row of the output layer is 0 never is.
    """
    generator = torch.Generator(network.device).manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            if value.numel() == 1:
                value.fill_(0.8)
        weight = network.lm_head.weight
        weight.normal_(0, 1 / math.sqrt(weight.shape[1]), generator=generator)
        weight[: 4 + len(_spoken())] = 0
    generation = network.generation_config
    generation.pad_token_id, generation.bos_token_id, generation.eos_token_id = 0, 1, 2


def _llava(
    device: torch.device,
    dtype: torch.dtype,
    vocabulary: int,
    side: int,
    text: dict,
    vision: dict,
    language: type = tf.LlamaConfig,
) -> tuple[Any, Any]:
    square = {"height": side, "width": side}
    images = CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False, **_NORM)
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(image_size=side, patch_size=14, **vision),
        text_config=language(vocab_size=vocabulary, max_position_embeddings=4096, **text),
        image_token_id=3, image_seq_length=(side // 14) ** 2, eos_token_id=2,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    processor = tf.LlavaProcessor(
        images, _tokenizer(vocabulary, "<image>"), patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip
    return _on(device, dtype, tf.LlavaForConditionalGeneration, config), processor


def _large(device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """39 million parameters, 576 image tokens: LLaVA-1.5's picture before a small model."""
    text = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 7,
            "num_attention_heads": 8, "num_key_value_heads": 8}  # fmt: skip
    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 10,
              "num_attention_heads": 4}  # fmt: skip
    return _llava(device, dtype, 8192, 336, text, vision)


def _tiny(device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2}  # fmt: skip
    return _llava(device, dtype, 512, 56, text, vision)


def _llava_7b(device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The sizes of LLaVA-1.5-7B: 0.52 MB of keys and values a token in 16 bits."""
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32}  # fmt: skip
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
              "num_attention_heads": 16}  # fmt: skip
    return _llava(device, dtype, 32_064, 336, text, vision)


def _qwen_7b(device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The language model of Qwen2.5-7B, its 152,064 words too, behind a small picture's tower."""
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4}  # fmt: skip
    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
              "num_attention_heads": 4}  # fmt: skip
    return _llava(device, dtype, 152_064, 336, text, vision, tf.Qwen2Config)


def _qwen_tiny(device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2}  # fmt: skip
    return _llava(device, dtype, 512, 56, text, vision, tf.Qwen2Config)


def _mllama(
    device: torch.device, dtype: torch.dtype, vocabulary: int, side: int, text: dict, vision: dict
) -> tuple[Any, Any]:
    tokenizer = _tokenizer(vocabulary, "<|image|>")
    config = tf.MllamaConfig(
        vision_config=tf.models.mllama.MllamaVisionConfig(image_size=side, **vision),
        text_config=tf.models.mllama.MllamaTextConfig(
            vocab_size=vocabulary, pad_token_id=0, bos_token_id=1, eos_token_id=2, **text
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    images = MllamaImageProcessorPil(size={"height": side, "width": side}, **_NORM)
    processor = tf.MllamaProcessor(
        images, tokenizer, chat_template=TEMPLATE.replace("IMAGE", "<|image|>")
    )
    return _on(device, dtype, tf.MllamaForConditionalGeneration, config), processor


def _mllama_11b(device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The sizes of Llama-3.2-11B-Vision: transformers' defaults but for the picture's side."""
    return _mllama(device, dtype, 128_256, 560, {}, {})


def _mllama_tiny(device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 2, "cross_attention_layers": [1],
            "max_position_embeddings": 4096}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_global_layers": 1, "attention_heads": 2, "patch_size": 14,
              "vision_output_dim": 64, "intermediate_layers_indices": [0]}  # fmt: skip
    return _mllama(device, dtype, 512, 56, text, vision)


def _on(device: torch.device, dtype: torch.dtype, kind: Any, config: Any) -> Any:
    """Built where it will live: 11 billion fp32 numbers need not pass through main memory."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return kind(config)
    finally:
        torch.set_default_dtype(before)


_BUILD = {
    "large": _large,
    "llava-7b": _llava_7b,
    "qwen-7b": _qwen_7b,
    "mllama-11b": _mllama_11b,
    "tiny": _tiny,
    "qwen-tiny": _qwen_tiny,
    "mllama-tiny": _mllama_tiny,
}
