"""Checkpoints that cannot be loaded say why; quantised ones keep their eyes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import BUILDERS, build, picture

from cot_engine.backends.local import loading
from cot_engine.backends.local.libraries import explained
from cot_engine.backends.local.needs import read_needs
from cot_engine.backends.local.opener import Local
from cot_engine.backends.models.registry import ARCHITECTURES
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Generate, Prompt
from cot_engine.errors import ConfigError, InputError, ModelError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build("llava", tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def reload(folder):
    return loading.load(folder, device="cpu")


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = dict(load_file(path))
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_tied_weights_are_not_missing(folder):
    """The output matrix is the input one and stands in no file."""
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert reload(folder).architecture == "LlavaForConditionalGeneration"


def test_missing_weights(folder):
    change_weights(folder, lambda w: w.pop(next(k for k in w if "layers.1.mlp.up_proj" in k)))
    with pytest.raises(ModelError, match=r"lacks 1 weights: .*layers\.1\.mlp\.up_proj"):
        reload(folder)


def test_misshapen_weights(folder):
    def widen(weights):
        name = next(k for k in weights if "multi_modal_projector.linear_1.weight" in k)
        weights[name] = torch.zeros(3, 5)

    change_weights(folder, widen)
    with pytest.raises(ModelError, match=r"misshapen 1 weights: .*linear_1"):
        reload(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors") as caught:
        reload(folder)
    assert "save_pretrained" in caught.value.hint


def test_damaged_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        reload(folder)


def test_damaged_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json.* cannot be read"):
        reload(folder)


def test_damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        reload(folder)


def test_processor_of_an_old_checkpoint(folder):
    """It did not say how many tokens an image takes: the config does."""
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    names = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in names}))
    pixels = reload(folder).adapter.prepare(picture(0).pixels, "0")
    assert pixels.tokens == 16


def test_no_config(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        reload(tmp_path)


def test_unsupported_architecture(folder):
    change_config(folder, architectures=["BertForMaskedLM"], model_type="bert")
    with pytest.raises(ModelError, match="BertForMaskedLM") as caught:
        reload(folder)
    assert "MllamaForConditionalGeneration" in caught.value.hint


def test_every_architecture_has_its_tiny_model():
    made = {type(builder()[0]).__name__ for builder in BUILDERS.values()}
    assert made == set(ARCHITECTURES)


def test_unsupported_language_model_inside(folder):
    config = json.loads((folder / "config.json").read_text())
    change_config(folder, text_config={**config["text_config"], "model_type": "gpt2"})
    with pytest.raises(ModelError, match="gpt2"):
        reload(folder)


@pytest.mark.parametrize("name", ["./nowhere", "nobody/has-this-model", "/no/such/folder"])
def test_no_such_model(name):
    with pytest.raises(ModelError, match="no model folder") as caught:
        reload(name)
    assert "hf download" in caught.value.hint


def test_a_misspelt_model_names_its_near_misses(tmp_path, monkeypatch):
    (tmp_path / "llava-7b").mkdir()
    (tmp_path / "llava-7b" / "config.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ModelError) as caught:
        reload(tmp_path / "lava-7b")
    assert caught.value.hint.startswith(f"Did you mean {tmp_path / 'llava-7b'}?")
    with pytest.raises(ModelError, match="Did you mean bundled"):
        reload("bundeld")
    monkeypatch.chdir(tmp_path.parent)  # a path that might be a hub name
    with pytest.raises(ModelError, match=f"Did you mean {tmp_path.name}/llava-7b"):
        reload(f"{tmp_path.name}/lava-7b")


def test_wrong_options(folder):
    with pytest.raises(InputError, match="no device 'tpu'"):
        loading.load(folder, device="tpu")
    with pytest.raises(InputError, match="no dtype 'int3'"):
        loading.load(folder, device="cpu", dtype="int3")
    with pytest.raises(InputError, match="quantisation '2bit'"):
        loading.load(folder, device="cpu", quantize="2bit")
    with pytest.raises(InputError, match="no device 'cpu:7': this machine shows 1") as caught:
        loading.load(folder, device="cpu:7")
    assert caught.value.hint == "Use cpu:0."
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no cuda"):
            loading.load(folder, device="cuda")


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError, RuntimeError])
def test_a_device_full_of_others_work_is_named(tmp_path, kind):
    with (
        pytest.raises(ModelError, match=r"Not enough memory on cuda:1.* for ") as caught,
        explained(tmp_path, "the weights cannot be loaded", "", torch.device("cuda:1")),
    ):
        raise kind("CUDA error: out of memory")
    assert "nvidia-smi" in caught.value.hint


def test_digest_names_the_weights(folder):
    first = reload(folder).digest
    change_weights(folder, lambda w: next(iter(w.values())).add_(1))
    assert reload(folder).digest != first
    assert len(first) == 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype(folder, dtype):
    with Local(device="cpu", dtype=dtype).open(folder) as backend:
        assert backend.info.dtype == dtype
        assert len(write(backend).generations) == 2


def write(backend):
    request = Generate("s", Prompt("how many", (picture(0),)), (), Until(), (1, 2), 5)
    return asyncio.run(backend.generate(request))


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.parametrize(
    "architecture", ["llava", "mllama", "qwen2_vl", "qwen3_vl_moe", "gemma3", "mistral3"]
)
def test_quantised(tmp_path, architecture, quantize):
    """Language model in 8 or 4 bits, vision tower, projector and output layer untouched: it takes
    what is said of it beforehand."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    small = (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit)
    folder = build(architecture, tmp_path)
    with Local(device="cpu", quantize=quantize).open(folder) as backend:
        inside = {
            name
            for name, module in backend.adapter.model.named_modules()
            if isinstance(module, small)
        }
        assert inside
        assert all(".language_model." in name for name in inside)
        assert len(inside) % backend.adapter.text.num_hidden_layers == 0
        held = 0
        for weight in backend.adapter.model.parameters():
            scales = getattr(getattr(weight, "quant_state", None), "absmax", None)
            scales = getattr(weight, "SCB", None) if scales is None else scales
            held += weight.nbytes + (0 if scales is None else scales.nbytes)
        assert read_needs(folder).weights("float32", quantize) == held
        assert len(write(backend).generations) == 2
        assert quantize in backend.info.notes[0]


def test_what_is_shown_of_a_picture_is_bounded_estimated_and_recorded(tmp_path):
    """As Qwen's own processor has it, where it is told so."""
    folder, image = build("qwen2_vl", tmp_path), picture(0, 400, 300)
    ask = Generate("s", Prompt("how many", (image,)), (), Until(), (1,), 3)
    spent = []
    for most in (None, 1000):
        with Local(device="cpu", max_pixels=most).open(folder) as backend:
            assert backend.info.max_pixels == most
            guess = backend.estimate(ask)
            done = asyncio.run(backend.generate(ask))
            assert (guess.prefilled, guess.flops) == (done.usage.prefilled, done.usage.flops)
            spent.append(done.usage)
            shown = backend._prepared(image).inputs["pixel_values"]
            processor = backend.adapter.processor.image_processor
    own = processor(images=[image.pixels], return_tensors="pt", min_pixels=196, max_pixels=1000)
    assert torch.equal(shown, own["pixel_values"])
    assert spent[1].prefilled < spent[0].prefilled and spent[1].flops < spent[0].flops
    with pytest.raises(ConfigError, match="max_pixels is 0"):
        Local(max_pixels=0).open(folder)


def test_contract_needs_no_torch():
    code = "import sys, cot_engine.backends; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
