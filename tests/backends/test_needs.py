"""What a checkpoint is said to need, against the model itself and against what others published."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
import torch
from command_line import process, two_lines
from transformers import AutoConfig

from cot_engine.backends.local import here as devices
from cot_engine.backends.local.here import Here, here
from cot_engine.backends.local.needs import fit, read_needs
from cot_engine.backends.models.places import FAMILIES
from cot_engine.backends.models.registry import ARCHITECTURES, adapter_for
from cot_engine.errors import InputError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from needs import write

FIXED = ("LlavaAdapter", "MllamaAdapter", "Gemma3Adapter")
"""Take as many tokens of any picture."""
SIZES = [(1024, 768), (28, 28), (768, 1024), (2000, 1500), (300, 17), (41, 503), (1456, 1456)]


@pytest.fixture(scope="module", params=tiny_models.BUILDERS)
def made(request, tmp_path_factory):
    """An adapter around its model, and the folder of both."""
    folder = tmp_path_factory.mktemp(request.param)
    network, processor = tiny_models.BUILDERS[request.param]()
    network.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    kind = adapter_for(network.config.architectures[0], AutoConfig.from_pretrained(folder))
    return kind(network, kind.load_processor(folder, network.config)), folder


def test_what_is_said_is_what_it_takes(made):
    adapter, folder = made
    needs = read_needs(folder)
    # Of those that share memory, one; what a router adds to its scores is no parameter.
    weights = sum({t.data_ptr(): t.nbytes for t in adapter.model.state_dict().values()}.values())
    assert needs.weights("float32") == 2 * needs.weights("bfloat16") == weights
    assert 4 * needs.token == adapter.kv_shape().bytes_per_token
    assert needs.layers == len(adapter.kv_shape().layers)
    if ARCHITECTURES[needs.architecture][0] not in FAMILIES:
        assert needs.places() is None and needs.problem("float32") is None
        return
    for size in SIZES:
        image = adapter.prepare(tiny_models.picture(1, *size).pixels, "")
        assert needs.places(size) == image.tokens, size
    with torch.inference_mode():
        held = adapter.encode(image).nbytes + image.tokens * adapter.kv_shape().bytes_per_token
    assert needs.picture("float32", size) == pytest.approx(held, rel=0.02)  # a flag a tile


def test_a_picture_of_fewer_pixels_takes_fewer_tokens(made, monkeypatch):
    """--max-pixels: as many as are said beforehand, by another name, and for fewer operations."""
    adapter, folder = made
    family = ARCHITECTURES[read_needs(folder).architecture][0]
    bounded = replace(read_needs(folder), most=800)
    pixels = [tiny_models.picture(1, *size).pixels for size in ((400, 300), (7, 300), (20, 30))]
    whole = [adapter.prepare(each, "a") for each in pixels]
    monkeypatch.setattr(adapter, "max_pixels", 800)
    less = [adapter.prepare(each, "a") for each in pixels]
    for each, before, image in zip(pixels, whole, less, strict=True):
        if family in FAMILIES:
            assert bounded.places(each.size) == image.tokens
        assert image.tokens <= before.tokens and image.digest != before.digest
    if type(adapter).__name__ not in FIXED:
        assert less[0].tokens < whole[0].tokens
        assert adapter.image_flops(less[0]) < adapter.image_flops(whole[0])
    with torch.inference_mode():
        adapter.encode(less[0])  # which compares places and features


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """shape(name): a folder of a published shape, a hole in place of its numbers."""
    return functools.cache(lambda name: write(name, tmp_path_factory.mktemp(name)))


# Parameters as the makers' model cards have them; 32 of Llama's 40 layers keep keys and values.
PUBLISHED = {
    "Llama-3.2-11B-Vision": (10.67e9, 2 * 32 * 8 * 128 * 2, 4 * 1601 * 2 * 8 * 8 * 128 * 2),
    "llava-1.5-7b": (7.06e9, 2 * 32 * 32 * 128 * 2, 576 * 4096 * 2),
    "Qwen2.5-VL-7B": (8.29e9, 2 * 28 * 4 * 128 * 2, 999 * 3584 * 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(cli, shape, name):
    parameters, token, features = PUBLISHED[name]
    [row] = json.loads(cli("list", "models", shape(name), "--json").stdout)
    told = row["needs"]
    assert told["parameters"] == pytest.approx(parameters, rel=0.003)
    assert told["weights"]["bfloat16"] == told["stored"] == 2 * told["parameters"]
    assert told["weights"]["4bit"] < told["weights"]["8bit"] < 0.65 * told["stored"]
    assert told["token"]["bfloat16"] == token
    [picture] = told["pictures"]
    assert picture["bfloat16"] == picture["tokens"] * token + features
    problem = 2 * ((256 + 3 * 256 + 4 * 256) * token + picture["bfloat16"])
    assert told["problem"]["bfloat16"] == problem
    at = Here("cuda:0", 80 * 10**9, "bfloat16")
    needs = read_needs(shape(name))
    left = 80 * 10**9 - told["stored"]
    assert fit(needs, at, memory=0.5).problems == int(0.5 * left) // problem
    assert fit(needs, at, memory="20GB").room == 20 * 10**9
    assert fit(needs, at, memory="200GB").room == left, "no more than there is"


MEASURED = """
import sys, time
from cot_engine.cli import main
code = main(sys.argv[1:])
most = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(code, "torch" in sys.modules, time.process_time(), most.split()[1])
"""


def test_a_dry_run_reads_no_weights(shape, picture):
    """Under 2 s and 200 MB, whatever the size of the folder."""
    ask = ["solve", picture, "How many?", "-m", shape("Llama-3.2-11B-Vision"), "--dry-run"]
    ask += ["--device", "cpu"]
    _, environment = process()
    command = [sys.executable, "-c", MEASURED, *map(str, ask)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *said, last = done.stdout.splitlines()
    assert "32x16 is 1 token, 210 MB" in "".join(said)
    assert "weights take 42.7 GB" in "".join(said)
    code, torch_there, seconds, kilobytes = last.split()
    assert (code, torch_there) == ("0", "False")
    assert float(seconds) < 2 and int(kilobytes) < 200_000


def test_what_is_wrong_with_a_folder_is_said(cli, tmp_path, shape):
    folder = shutil.copytree(
        shape("llava-1.5-7b"), tmp_path / "f", ignore=lambda *_: ["model.safetensors"]
    )
    for arguments in (("list", "models", folder), ("solve", "What?", "-m", folder, "--dry-run")):
        assert "holds no safetensors weights" in two_lines(cli(*arguments))
    assert "nothing is downloaded" in two_lines(cli("list", "models", "no/such")).lower()
    assert "only models has" in two_lines(cli("list", "judges", folder))


def test_a_dry_run_says_what_would_run(cli, tmp_path):
    asked = ("solve", "How many?", "--dry-run", "-n", "3", "--memory", "1MB")
    told = json.loads(cli(*asked, "--json").stdout)
    assert told["options"]["parameters"]["n"] == 3
    assert told["options"]["plan"] == ["SUMMARY", "REASONING", "CONCLUSION"]
    assert told["needs"]["here"]["problems"] == 0
    assert "(--memory 1MB): not enough for one problem" in cli(*asked).stdout
    store = tmp_path / "s.sqlite"
    done = cli("ablate", "paper", "--dry-run", "--problems", "2", "--store", store)
    assert "problems=2" in done.stdout and "weights" in done.stdout and not store.exists()


def test_a_gpu_is_asked_without_torch(tmp_path, monkeypatch):
    """By the tool of its driver, which knows nothing of the GPUs that a process may see."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\nfor last; do :; done\n[ "$last" = 5 ] && echo 81000\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert here().device in ("cpu", "mps") or torch.version.cuda, "a build of torch for the CPU"
    monkeypatch.setattr(devices, "_built_for_gpu", lambda: True)
    assert here("cuda:1") == Here("cuda:1", 81000 << 20, "bfloat16")
    for missing in ("cuda:0", "cuda:2"):
        with pytest.raises(InputError, match=f"no {missing} device"):
            here(missing)
    assert here("auto", "float16").device in ("cpu", "mps")
