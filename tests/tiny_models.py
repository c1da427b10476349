"""Small random models of every supported architecture, with tokenizers and processors, offline.

Random initialisation alone would make some tests vacuous: Mllama's gates and Gemma 3's projector
start at zero, and freshly initialised layers hardly change what passes through them. So every
parameter is drawn anew, gates open, logits peaked enough for positions to matter.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from cot_engine.images.load import Image

WORDS = (
    " the a red blue circle square is are there how many one two three so because answer first "
    "second A B left right of and The picture shows <SUMMARY> </SUMMARY> <CAPTION> </CAPTION> "
    "<REASONING> </REASONING> <CONCLUSION> </CONCLUSION>"
).split(" ")
SPECIALS = ["<pad>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
NORM = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 32,
}


def tokenizer(extra: dict[str, str] | None = None) -> tf.PreTrainedTokenizerFast:
    """Byte-level: whole words where known, bytes otherwise. `extra` names further specials."""
    extra = extra or {}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = [w.replace(" ", "Ġ") for w in [*WORDS, *(" " + w for w in WORDS)] if w]
    tokens = list(dict.fromkeys([*SPECIALS, *extra.values(), *alphabet, *spelled]))
    core = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], ignore_merges=True)
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(r"</[A-Z]+>", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    specials = [*SPECIALS, *extra.values()]
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=extra,
        clean_up_tokenization_spaces=False,
    )


def picture(seed: int, width: int = 40, height: int = 28) -> Image:
    """Noise, as an engine's image."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image(PIL.Image.fromarray(pixels), f"{seed:08x}".ljust(64, "7"), "test")


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _llava() -> tuple[Any, Any]:
    tok = tokenizer({"image_token": "<image>"})
    images = CLIPImageProcessorPil(
        size=_square(28), crop_size=_square(28), do_center_crop=False, **NORM
    )
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**CLIP),
        text_config=tf.LlamaConfig(vocab_size=len(tok), tie_word_embeddings=True, **TEXT),
        image_token_id=3,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=16,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    processor = tf.LlavaProcessor(
        images,
        tok,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return tf.LlavaForConditionalGeneration(config), processor


def _llava_next() -> tuple[Any, Any]:
    tok = tokenizer({"image_token": "<image>"})
    grid = [[28, 56], [56, 28], [56, 56]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size=_square(28), image_grid_pinpoints=grid, **NORM
    )
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**CLIP),
        text_config=tf.MistralConfig(vocab_size=len(tok), head_dim=16, sliding_window=48, **TEXT),
        image_token_id=3,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=grid,
        image_seq_length=16,
        eos_token_id=2,
    )
    processor = tf.LlavaNextProcessor(
        images,
        tok,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>\n"),
    )
    return tf.LlavaNextForConditionalGeneration(config), processor


def _onevision() -> tuple[Any, Any]:
    tok = tokenizer({"image_token": "<image>", "video_token": "<video>"})
    grid = [[28 * high, 28 * wide] for high in (1, 2, 3) for wide in (1, 2, 3)]
    images = LlavaOnevisionImageProcessorPil(
        size=_square(28), image_grid_pinpoints=grid, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(
            **{k: v for k, v in CLIP.items() if k != "projection_dim"}, vision_use_head=False
        ),
        text_config=tf.Qwen2Config(vocab_size=len(tok), **TEXT),
        image_token_id=3,
        video_token_id=tok.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",  # so that nine tiles are made fewer
        image_grid_pinpoints=grid,
        tie_word_embeddings=False,
    )
    model = tf.LlavaOnevisionForConditionalGeneration(config)
    own = {"num_image_tokens": 16, "vision_aspect_ratio": "anyres_max_4"}
    own["vision_feature_select_strategy"] = "full"
    return model, Parts(images, tok, TEMPLATE.replace("IMAGE", "<image>\n"), own)


def _pixtral(merge: int) -> tuple[Any, Any]:
    """Of two families: a LLaVA by its config.json, and Mistral 3, which merges patches."""
    tok = tokenizer({"image": "[IMG]", "break": "[IMG_BREAK]", "end": "[IMG_END]"})
    images = PixtralImageProcessorPil(size={"longest_edge": 63}, patch_size=_square(7), **NORM)
    vision = tf.PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=63,
        patch_size=7,
    )
    settings = {
        "vision_config": vision,
        "text_config": tf.MistralConfig(vocab_size=len(tok), head_dim=16, **TEXT),
        "image_token_id": tok.convert_tokens_to_ids("[IMG]"),
        "vision_feature_layer": -1,
        "tie_word_embeddings": False,
    }
    if merge == 1:
        more = {"vision_feature_select_strategy": "full", "image_seq_length": 1}
        model: Any = tf.LlavaForConditionalGeneration(tf.LlavaConfig(**settings, **more))
    else:
        config = tf.Mistral3Config(**settings, spatial_merge_size=merge)
        model = tf.Mistral3ForConditionalGeneration(config)
    own = {"patch_size": 7, "spatial_merge_size": merge, "image_token": "[IMG]"}
    return model, Parts(images, tok, TEMPLATE.replace("IMAGE", "[IMG]"), own)


def _mllama() -> tuple[Any, Any]:
    tok = tokenizer({"image_token": "<|image|>", "python": "<|python_tag|>"})
    images = MllamaImageProcessorPil(size=_square(28), max_image_tiles=4, **NORM)
    vision = tf.models.mllama.MllamaVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        image_size=28,
        patch_size=7,
        vision_output_dim=64,
        max_num_tiles=4,
        intermediate_layers_indices=[0],
        supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    )
    text = tf.models.mllama.MllamaTextConfig(
        vocab_size=len(tok), cross_attention_layers=[1, 3], **{**TEXT, "num_hidden_layers": 5}
    )
    image_id = tok.convert_tokens_to_ids("<|image|>")
    config = tf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=image_id)
    processor = tf.MllamaProcessor(
        images, tok, chat_template=TEMPLATE.replace("IMAGE", "<|image|>")
    )
    return tf.MllamaForConditionalGeneration(config), processor


QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
QWEN_TEMPLATE = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


class Parts:
    """An image processor and a tokenizer, where the whole processor insists on torchvision."""

    def __init__(
        self, image_processor: Any, tokenizer: Any, chat_template: str, own: dict | None = None
    ) -> None:
        self.own = own
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.tokenizer.chat_template = chat_template

    def save_pretrained(self, folder: str | Path) -> None:
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.own is not None:
            (Path(folder) / "processor_config.json").write_text(json.dumps(self.own))


def _qwen(config: Any, model: Any, vision: dict, patch: int, **text: Any) -> tuple[Any, Any]:
    tok = tokenizer(QWEN)
    images = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (2 * patch) ** 2, "longest_edge": 64 * patch**2},
        **NORM,
    )
    mrope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    built = config(
        vision_config=vision,
        text_config={**TEXT, "vocab_size": len(tok), "rope_parameters": mrope, **text},
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tok.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tok.convert_tokens_to_ids("<|vision_end|>"),
    )
    return model(built), Parts(images, tok, QWEN_TEMPLATE)


def _qwen2() -> tuple[Any, Any]:
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 2,
        "patch_size": 7,
        "mlp_ratio": 2,
    }
    return _qwen(tf.Qwen2VLConfig, tf.Qwen2VLForConditionalGeneration, vision, 7)


def _qwen25() -> tuple[Any, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 7,
        "window_size": 28,
        "fullatt_block_indexes": [1],
    }
    return _qwen(tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration, vision, 7)


def _qwen3(**text: Any) -> tuple[Any, Any]:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 8,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {"head_dim": 16, **text}
    return _qwen(tf.Qwen3VLConfig, tf.Qwen3VLForConditionalGeneration, vision, 8, **text)


def _qwen3_moe() -> tuple[Any, Any]:
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 8,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    kinds = tf.Qwen3VLMoeConfig, tf.Qwen3VLMoeForConditionalGeneration
    return _qwen(*kinds, vision, 8, head_dim=16, mlp_only_layers=[1], **experts)


def _internvl() -> tuple[Any, Any]:
    tok = tokenizer(
        {
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        }
    )
    images = GotOcr2ImageProcessorPil(
        size=_square(28), crop_to_patches=True, min_patches=1, max_patches=4, **NORM
    )
    config = tf.InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [28, 28],
            "patch_size": [7, 7],
        },
        text_config=tf.Qwen3Config(vocab_size=len(tok), head_dim=16, **TEXT),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    model = tf.InternVLForConditionalGeneration(config)
    return model, Parts(images, tok, TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"))


IDEFICS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    **{f"r{i}c{j}": f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)},
}


def _idefics(smol: bool) -> tuple[Any, Any]:
    tok = tokenizer(IDEFICS)
    settings = {
        "size": {"longest_edge": 64},
        "max_image_size": {"longest_edge": 32},
        "do_image_splitting": True,
        **NORM,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = tf.LlamaConfig(vocab_size=len(tok), **TEXT)
    kwargs = {
        "image_token_id": 3,
        "scale_factor": 2,
        "text_config": text,
        "vision_config": vision,
        "pad_token_id": 0,
    }
    template = TEMPLATE.replace("IMAGE", "<image>")
    if smol:
        model = tf.SmolVLMForConditionalGeneration(tf.SmolVLMConfig(**kwargs))
        return model, Parts(SmolVLMImageProcessorPil(**settings), tok, template)
    model = tf.Idefics3ForConditionalGeneration(tf.Idefics3Config(**kwargs))
    processor = tf.Idefics3Processor(
        Idefics3ImageProcessorPil(**settings), tok, image_seq_len=4, chat_template=template
    )
    return model, processor


def _gemma3() -> tuple[Any, Any]:
    tok = tokenizer(
        {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        }
    )
    images = Gemma3ImageProcessorPil(size=_square(28), **NORM)
    config = tf.Gemma3Config(
        text_config=tf.Gemma3TextConfig(
            vocab_size=len(tok),
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=20,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            **TEXT,
        ),
        vision_config=tf.SiglipVisionConfig(
            **{k: v for k, v in CLIP.items() if k != "projection_dim"}, vision_use_head=False
        ),
        mm_tokens_per_image=4,
        image_token_index=tok.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tok.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tok.convert_tokens_to_ids("<end_of_image>"),
    )
    processor = tf.Gemma3Processor(
        images,
        tok,
        image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>"),
    )
    return tf.Gemma3ForConditionalGeneration(config), processor


GLM = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "begin_image": "<|begin_of_image|>",
    "end_image": "<|end_of_image|>",
    "video_start": "<|begin_of_video|>",
    "video_end": "<|end_of_video|>",
    "user": "<|user|>",
    "think": "<think>",
    "thought": "</think>",
}


UNTHOUGHT = "{{ '<think></think>\n' if enable_thinking is defined and not enable_thinking }}"


def _glm(moe: bool) -> tuple[Any, Any]:
    tok = tokenizer(GLM)
    ids = {name: tok.convert_tokens_to_ids(token) for name, token in GLM.items()}
    images = Glm4vImageProcessorPil(
        patch_size=7,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 2 * 14**2, "longest_edge": 128 * 7**2},
        **NORM,
    )
    mrope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    text = {**TEXT, "vocab_size": len(tok)}
    text["rope_parameters"] = {**mrope, "partial_rotary_factor": 0.5}
    if moe:
        text |= {"n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1}
        text |= {"moe_intermediate_size": 48, "first_k_dense_replace": 1, "head_dim": 16}
    kind = tf.Glm4vMoeConfig if moe else tf.Glm4vConfig
    config = kind(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
        text_config=text,
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        image_start_token_id=ids["begin_image"],
        image_end_token_id=ids["end_image"],
        video_start_token_id=ids["video_start"],
        video_end_token_id=ids["video_end"],
    )
    model = tf.Glm4vMoeForConditionalGeneration if moe else tf.Glm4vForConditionalGeneration
    template = TEMPLATE.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>")
    template = template.replace("assistant\n", f"assistant\n{UNTHOUGHT}")
    answered = "{{ '<think></think>\n' if m['role'] == 'assistant' }}"  # as its makers' has it
    template = template.replace("{{ m['role'] }}\n", "{{ m['role'] }}\n" + answered)
    return model(config), Parts(images, tok, template)


BUILDERS = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _onevision,
    "pixtral": lambda: _pixtral(1),
    "mistral3": lambda: _pixtral(2),
    "mllama": _mllama,
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen25,
    "qwen3_vl": _qwen3,
    "qwen3_vl_moe": _qwen3_moe,
    "internvl": _internvl,
    "idefics3": lambda: _idefics(False),
    "smolvlm": lambda: _idefics(True),
    "gemma3": _gemma3,
    "glm4v": lambda: _glm(False),
    "glm4v_moe": lambda: _glm(True),
}


def enliven(model: torch.nn.Module, seed: int = 0) -> None:
    """Redraw every parameter so that all parts of the model matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.numel() == 1:  # a gate
                value.fill_(0.8)
            elif value.ndim == 1:  # a norm's weight or a bias: keep its centre
                value.add_(0.1 * noise)
            elif "embed_tokens" in name:  # often the output matrix too: neither flat nor certain
                # Gemma scales what it reads by 8: at the others' size every token but repeated
                # itself, whatever came before it.
                scale = float(
                    getattr(model.get_submodule(name[: -len(".weight")]), "embed_scale", 1)
                )
                value.copy_(noise * (2.5 / math.sqrt(scale * value.shape[-1])))
            else:
                fan_in = value.shape[-1] if "experts" in name else math.prod(value.shape[1:])
                value.copy_(noise * (1.5 / math.sqrt(fan_in)))


def build(architecture: str, folder: str | Path, seed: int = 0, **text: Any) -> Path:
    """Write a checkpoint of `architecture` (see BUILDERS) to `folder`; `text` is what its language
    model has otherwise, where its builder takes that."""
    torch.manual_seed(seed)
    model, processor = BUILDERS[architecture](**text)
    enliven(model.eval(), seed)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
