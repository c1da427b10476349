"""Folders in the published formats of quantised weights give what plain transformers gives."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers as tf
from near import largest
from safetensors.torch import load_file, save_file
from tiny_models import build, picture

from cot_engine.backends.local import packed
from cot_engine.backends.local.opener import Local
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Generate, Prompt, Sampling

SPARED = ["vision_tower", "multi_modal_projector", "lm_head"]
NOW = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
GROUP = 32


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build("llava", tmp_path_factory.mktemp("whole"))


def pack(values, dim, order=range(8)):
    """Eight numbers of 4 bits in one of 32, along `dim`."""
    parts = values.long().movedim(dim, -1).unflatten(-1, (-1, 8))
    packed = sum(parts[..., at] << (4 * i) for i, at in enumerate(order))
    return torch.where(packed >= 2**31, packed - 2**32, packed).int().movedim(-1, dim).contiguous()


def rounded(weight):
    """4 bits for each number, scales and zeros for each group of a row."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(1, 15)
    return (groups / scales[..., None] + zeros[..., None]).round().clamp(0, 15).flatten(1), (
        scales,
        zeros,
    )


def gptq(name, weight):
    values, (scales, zeros) = rounded(weight)
    return {
        f"{name}.qweight": pack(values.T, 0),
        f"{name}.qzeros": pack(zeros.T - 1, 1),
        f"{name}.scales": scales.T.half().contiguous(),
        f"{name}.g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }


def awq(name, weight):
    values, (scales, zeros) = rounded(weight)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        f"{name}.qweight": pack(values.T, 1, order),
        f"{name}.qzeros": pack(zeros.T, 1, order),
        f"{name}.scales": scales.T.half().contiguous(),
    }


def compressed(name, weight):
    groups = weight.unflatten(1, (-1, GROUP))
    scales = groups.abs().amax(-1) / 7
    values = (groups / scales[..., None]).round().clamp(-8, 7).flatten(1)
    return {
        f"{name}.weight_packed": pack(values + 8, 1),
        f"{name}.weight_scale": scales,
        f"{name}.weight_shape": torch.tensor(weight.shape),
    }


def fp8(name, weight):
    blocks = weight.unflatten(1, (-1, GROUP)).unflatten(0, (-1, GROUP))
    scales = blocks.abs().amax((1, 3)) / 448
    values = blocks / scales[:, None, :, None]
    return {
        f"{name}.weight": values.flatten(2).flatten(0, 1).to(torch.float8_e4m3fn),
        f"{name}.weight_scale_inv": scales,
    }


W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
FORMATS = {
    "gptq": (gptq, None, {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}),
    "awq": (
        *(awq, "modules_to_not_convert"),
        {"bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
    ),
    "compressed-tensors": (
        *(compressed, "ignore"),
        {
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": W4}},
        },
    ),
    "fp8": (fp8, "modules_to_not_convert", {"weight_block_size": [GROUP, GROUP]}),
}


def write_packed(folder, method, spared):
    pack_one, key, how = FORMATS[method]
    config = json.loads((folder / "config.json").read_text())
    if key is not None:
        # compressed-tensors knows modules by their whole names, or by expressions.
        named = [f"re:{name}.*" for name in spared] if key == "ignore" else spared
        how = {**how, key: named}
    config["quantization_config"] = {"quant_method": method, **how}
    (folder / "config.json").write_text(json.dumps(config))
    small_ones = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        small = name.startswith("language_model") and name.endswith("_proj.weight")
        small_ones |= pack_one(name.removesuffix(".weight"), weight) if small else {name: weight}
    save_file(small_ones, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("method", FORMATS)
def test_equals_plain_transformers(whole, tmp_path, method):
    """Named as programs before transformers 5 named what they spared, too: plain transformers
    looks for modules of those names, finds none, and puts random numbers in their places."""
    for package in packed._PACKAGES[method]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    old, now = (shutil.copytree(whole, tmp_path / name) for name in ("old", "now"))
    write_packed(now, method, NOW)
    write_packed(old, method, SPARED)
    plain = tf.LlavaForConditionalGeneration.from_pretrained(
        now, dtype=torch.float32, attn_implementation="sdpa", device_map={"": "cpu"}
    )
    original = tf.LlavaForConditionalGeneration.from_pretrained(whole, dtype=torch.float32)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0)
    prompt = Prompt("how many", (picture(0),))
    request = Generate("s", prompt, (), Until(), (1, 2), 8, sampling)
    with Local(device="cpu").open(old) as backend:
        unpacked = [note for note in backend.info.notes if "unpacked" in note]
        assert bool(unpacked) == (method in ("compressed-tensors", "fp8"))
        written = asyncio.run(backend.generate(request)).generations
        sequence = backend._reply(request)
        wrong, changed = [], []
        for one in written:
            ids = torch.tensor([[*sequence.ids, *one.ids]])
            whole_row = replace(sequence, ids=tuple(ids[0].tolist()))
            inputs = backend.adapter.stock_inputs(ids, [whole_row])
            for model, differences in ((plain, wrong), (original, changed)):
                with torch.inference_mode():
                    logits = model(input_ids=ids, use_cache=False, **inputs).logits[0]
                found = logits[len(sequence.ids) - 1 : -1].float().log_softmax(-1)
                total = found.gather(1, torch.tensor(one.ids)[:, None]).sum().item()
                differences.append(total - one.logprob)
    assert largest(wrong) < 1e-4
    assert largest(changed) > 1e-2  # the weights were rounded indeed
