"""The table "What it needs" of docs/models.md: published shapes, without their weights.

    python benchmarks/needs.py           # prints the rows
    python benchmarks/needs.py FOLDER    # and keeps what `list models FOLDER/NAME` reads

Of each shape a folder is written that holds its config.json and a file of weights with a real
header and a hole in place of the numbers. What is printed is what `cot-engine list models --json`
says of it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from cot_engine.cli.needs import amount, needs
from cot_engine.show.words import plural

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
QWEN3_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}
QWEN_IMAGES = {"patch_size": 14, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12845056}
QWEN3_IMAGES = {"patch_size": 16, "merge_size": 2, "min_pixels": 65536, "max_pixels": 16777216}


def _text(
    kind: str, hidden: int, inner: int, layers: int, heads: str, vocabulary: int, **more: Any
):
    """A language model; `heads` are those of queries and of keys: "32/8"."""
    queries, keys = map(int, heads.split("/"))
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": queries, "num_key_value_heads": keys}
    return {"model_type": kind, **sizes, "vocab_size": vocabulary, **more}


SHAPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llava-1.5-7b": (
        "Llava",
        {
            "vision_config": CLIP,
            "text_config": _text("llama", 4096, 11008, 32, "32/32", 32064),
            "vision_feature_select_strategy": "default",
        },
        {},
    ),
    "llava-v1.6-mistral-7b": (
        "LlavaNext",
        {
            "vision_config": CLIP,
            "text_config": _text("mistral", 4096, 14336, 32, "32/8", 32064, sliding_window=None),
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
        {},
    ),
    "Llama-3.2-11B-Vision": (
        "Mllama",
        {
            "vision_config": {
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_global_layers": 8,
                "attention_heads": 16,
                "image_size": 560,
                "patch_size": 14,
                "max_num_tiles": 4,
                "vision_output_dim": 7680,
                "intermediate_layers_indices": [3, 7, 15, 23, 30],
            },
            "text_config": _text(
                *("mllama_text_model", 4096, 14336, 40, "32/8", 128256),
                cross_attention_layers=[3, 8, 13, 18, 23, 28, 33, 38],
            ),
        },
        {},
    ),
    "Qwen2-VL-2B": (
        "Qwen2VL",
        {
            "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16},
            "text_config": _text("qwen2_vl_text", 1536, 8960, 28, "12/2", 151936),
            "tie_word_embeddings": True,
        },
        QWEN_IMAGES,
    ),
    "Qwen2.5-VL-7B": (
        "Qwen2_5_VL",
        {
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "out_hidden_size": 3584,
                "num_heads": 16,
            },
            "text_config": _text("qwen2_5_vl_text", 3584, 18944, 28, "28/4", 152064),
        },
        QWEN_IMAGES,
    ),
    "Qwen3-VL-8B": (
        "Qwen3VL",
        {
            "vision_config": {**QWEN3_TOWER, "out_hidden_size": 4096},
            "text_config": _text("qwen3_vl_text", 4096, 12288, 36, "32/8", 151936, head_dim=128),
        },
        QWEN3_IMAGES,
    ),
    "Qwen3-VL-30B-A3B": (
        "Qwen3VLMoe",
        {
            "vision_config": {**QWEN3_TOWER, "out_hidden_size": 2048},
            "text_config": _text(
                *("qwen3_vl_moe_text", 2048, 6144, 48, "32/4", 151936),
                **{"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8},
                moe_intermediate_size=768,
            ),
        },
        QWEN3_IMAGES,
    ),
    "InternVL3-8B": (
        "InternVL",
        {
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": [448, 448],
                "patch_size": [14, 14],
            },
            "text_config": _text("qwen2", 3584, 18944, 28, "28/4", 151674),
            "tie_word_embeddings": False,
        },
        {"size": {"height": 448, "width": 448}, "max_patches": 12},
    ),
    "Idefics3-8B": (
        "Idefics3",
        {
            "vision_config": {**SIGLIP, "image_size": 364},
            "text_config": _text("llama", 4096, 14336, 32, "32/8", 128259),
            "scale_factor": 2,
        },
        {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}},
    ),
    "SmolVLM2-500M": (
        "SmolVLM",
        {
            "vision_config": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "image_size": 512,
                "patch_size": 16,
            },
            "text_config": _text("llama", 960, 2560, 32, "15/5", 49280),
            "scale_factor": 4,
        },
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    ),
    "gemma-3-4b": (
        "Gemma3",
        {
            "vision_config": {**SIGLIP, "image_size": 896, "vision_use_head": False},
            "text_config": _text(
                "gemma3_text", 2560, 10240, 34, "8/4", 262208, head_dim=256, sliding_window=1024
            ),
            "mm_tokens_per_image": 256,
        },
        {},
    ),
}
"""By name: the architecture, what its config.json says, and its preprocessor_config.json."""


def write(name: str, folder: Path) -> Path:
    """A folder of that shape: everything but the numbers."""
    family, given, images = SHAPES[name]
    config = getattr(tf, f"{family}Config")(**given)
    with torch.device("meta"):
        network = getattr(tf, f"{family}ForConditionalGeneration")(config)
    config.architectures = [f"{family}ForConditionalGeneration"]
    config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(images), "utf-8")
    header, at = {}, 0
    for key, value in network.named_parameters():
        end = at + value.numel() * 2
        header[key] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return folder


def row(name: str, told: dict[str, Any]) -> str:
    """A line of the table, in bfloat16."""
    weights, picture = told["weights"], told["pictures"][0]
    sizes = [amount(weights[way]) for way in ("bfloat16", "8bit", "4bit")]
    seen = f"{plural(picture['tokens'], 'token')}, {amount(picture['bfloat16'])}"
    problem = told["problem"]["bfloat16"]
    cells = [name, *sizes, amount(told["token"]["bfloat16"]), seen, amount(problem)]
    return f"| {' | '.join([*cells, f'{1e9 / problem:.2g}'])} |"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for name in SHAPES:
            place = Path(sys.argv[1] if len(sys.argv) > 1 else temporary) / name
            print(row(name, needs(write(name, place))), flush=True)
