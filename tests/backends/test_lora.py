"""--adapter: a LoRA merged into the weights answers as PEFT's own merge does, or is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tiny_models import build, picture

from cot_engine.backends.local import loading
from cot_engine.backends.local.opener import Local
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Generate, Prompt, Sampling
from cot_engine.errors import CotEngineError

peft = pytest.importorskip("peft")
REQUEST = Generate(
    *("s", Prompt("how many", (picture(0),)), (), Until(), (1, 2), 8),
    Sampling(temperature=1.0, top_p=1.0, top_k=0),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build("llava", tmp_path_factory.mktemp("base"))


def network(base):
    return tf.LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """An adapter on linear layers of two ranks, and with a whole layer beside them."""
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "up_proj"],
        alpha_pattern={"language_model.layers.1.mlp.up_proj": 2},
        modules_to_save=["multi_modal_projector"],
        init_lora_weights=False,  # B is not zero
    )
    wrapped = peft.get_peft_model(network(base), config)
    wrapped.peft_config["default"].base_model_name_or_path = "maker/base-7b"
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "modules_to_save" in name:
                weight.mul_(1.1)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture
def lora(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "lora")


def change(folder, act):
    path = folder / "adapter_model.safetensors"
    save_file(act(load_file(path)), path, metadata={"format": "pt"})


def written(backend):
    return asyncio.run(backend.generate(REQUEST)).generations


def test_merged_is_what_peft_makes_of_it(base, trained, lora):
    """Also under the names that transformers 4 had for the same modules."""
    merged = peft.PeftModel.from_pretrained(network(base), trained).merge_and_unload().eval()
    before = (base / "model.safetensors").read_bytes()
    with Local(device="cpu").open(base) as plain, Local(device="cpu", adapter=lora).open(base) as b:
        assert b.info.digest != plain.info.digest and len(b.info.digest) == 16
        assert b.info.model == f"{base} + {lora}"
        assert "merged into 8 modules" in " ".join(b.info.notes)
        assert [g.ids for g in written(plain)] != [g.ids for g in written(b)]
        sequence = b._reply(REQUEST)
        for one in written(b):
            ids = torch.tensor([[*sequence.ids, *one.ids]])
            whole = replace(sequence, ids=tuple(ids[0].tolist()))
            inputs = b.adapter.stock_inputs(ids, [whole])
            with torch.inference_mode():
                logits = merged(input_ids=ids, use_cache=False, **inputs).logits[0]
            found = logits[len(sequence.ids) - 1 : -1].log_softmax(-1)
            total = found.gather(1, torch.tensor(one.ids)[:, None]).sum().item()
            assert abs(total - one.logprob) < 1e-4
        kept = dict(b.adapter.model.state_dict())
    assert (base / "model.safetensors").read_bytes() == before  # its file is mapped
    new, old = "model.language_model.", "language_model.model."
    change(
        lora,
        lambda w: {k.replace(new, old).replace("model.multi", "multi"): v for k, v in w.items()},
    )
    settings = json.loads((lora / "adapter_config.json").read_text())
    settings["alpha_pattern"] = {f"{old}layers.1.mlp.up_proj": 2}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    again = loading.load(base, device="cpu", adapter=lora).adapter.model.state_dict()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def settings(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def first(weights, make):
    name = next(name for name in weights if "up_proj.lora_A" in name)
    return {**weights, name: make(weights[name])}


SPOILED = {
    "nowhere": (shutil.rmtree, "no adapter folder", "hf download"),
    "no adapter": (lambda f: (f / "adapter_config.json").unlink(), "holds no adapter", "PEFT"),
    "no LoRA": (lambda f: settings(f, peft_type="IA3"), "of the kind 'IA3'", "merged folder"),
    "no object": (
        *(lambda f: (f / "adapter_config.json").write_text("[1]"), "of the kind None", "merged"),
    ),
    "pickled": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        *("only a pickled adapter_model.bin", "can run code"),
    ),
    "cut short": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x00" * 99),
        *("is no safetensors file", "again"),
    ),
    "another base": (
        lambda f: change(f, lambda w: {k.replace("layers.2", "layers.9"): v for k, v in w.items()}),
        *("modules that this model does not have", "maker/base-7b"),
    ),
    "another width": (
        lambda f: change(f, lambda w: first(w, lambda x: x[:, :32].clone())),
        *(r"up_proj.lora_A.weight is \[4, 32\]; this model's would be \[4, 64\]", "maker/base-7b"),
    ),
    "another rank": (lambda f: settings(f, r=2), r"is \[4, 64\]; .* \[2, 64\]", "trained on"),
    "half of it": (
        lambda f: change(
            f, lambda w: {k: v for k, v in w.items() if "1.mlp.up_proj.lora_B" not in k}
        ),
        *("it lacks .*lora_B", "same training"),
    ),
    "no number": (
        lambda f: change(f, lambda w: first(w, lambda x: x * float("nan"))),
        *("1 of the adapter's weights hold nan", "earlier checkpoint"),
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_an_adapter_that_does_not_fit_says_why(base, lora, how):
    spoil, words, hint = SPOILED[how]
    spoil(lora)
    with pytest.raises(CotEngineError, match=words) as caught:
        loading.load(base, device="cpu", adapter=lora)
    assert hint in caught.value.hint


def test_what_cannot_be_merged_is_said_before_anything_is_loaded(base, lora):
    with pytest.raises(CotEngineError, match="quantised weights") as caught:
        loading.load(base, device="cpu", quantize="4bit", adapter=lora)
    assert "Leave out --quantize" in caught.value.hint
    with pytest.raises(CotEngineError, match="holds no adapter") as caught:
        loading.load(base, device="cpu", adapter=base)
    assert "as --model" in caught.value.hint
    with pytest.raises(CotEngineError, match="no model of its own") as caught:
        loading.load(lora, device="cpu")
    assert f"(maker/base-7b), and this folder with --adapter: --model BASE --adapter {lora}" in (
        caught.value.hint
    )
