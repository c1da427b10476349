"""Folders that would give a wrong answer, or a bare traceback: each is refused in its own words."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tiny_models import CLIP, build, enliven, picture
from tokenizers import Tokenizer, models

from cot_engine.backends.local import loading, packed
from cot_engine.backends.local.hub import cached
from cot_engine.backends.local.needs import read_needs
from cot_engine.backends.local.opener import Local
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Generate, Prompt
from cot_engine.engine.facade import Engine
from cot_engine.errors import InputError, ModelError
from cot_engine.training.examples import Encoder


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """builds(architecture): a tiny checkpoint that nobody changes."""
    made = {}

    def made_once(architecture):
        if architecture not in made:
            made[architecture] = build(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return made_once


@pytest.fixture
def copy(builds, tmp_path):
    """copy(architecture): one to spoil."""

    def copied(architecture="llava"):
        for path in builds(architecture).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        return tmp_path

    return copied


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = dict(load_file(path))
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refused(folder, *words, hint="", **options):
    """Loading is refused with these words, in this order, and this next step."""
    with pytest.raises(ModelError, match="(?s)" + ".*".join(map(re.escape, words))) as caught:
        loading.load(folder, device="cpu", **options)
    assert hint in caught.value.hint and caught.value.hint
    return caught.value


def write(backend, images=1):
    prompt = Prompt("how many", tuple(picture(i) for i in range(images)))
    return asyncio.run(backend.generate(Generate("s", prompt, (), Until(), (1,), 4)))


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(copy, value):
    folder = copy()

    def spoil(weights):
        weights[next(k for k in weights if "layers.1.mlp.up_proj" in k)][3, 5] = value

    change_weights(folder, spoil)
    refused(folder, "1 weights that hold nan or infinity", "layers.1.mlp.up_proj", hint="--dtype")


def test_weights_without_a_place(copy):
    """A bias that config.json does not know of changes every answer."""
    folder, name = copy(), "language_model.model.layers.0.self_attn.q_proj.bias"
    change_weights(folder, lambda w: w.update({name: torch.ones(64)}))
    refused(folder, "1 weights for which the network", "q_proj.bias", hint="adapter")


def test_weights_beside_the_network_are_named_aloud(copy):
    folder, heard = copy(), []
    change_weights(folder, lambda w: w.update({"mtp.norm.weight": torch.ones(64)}))
    with Local(device="cpu").open(folder, on_notice=heard.append) as backend:
        (note,) = [note for note in backend.info.notes if "mtp.norm.weight" in note]
    assert heard == [note] and note.startswith("1 weights in the model's folder are not used")


def test_leftover_layers(copy):
    folder = copy()
    change_json(folder / "config.json", lambda c: c["text_config"].update(num_hidden_layers=2))
    refused(folder, "gives the language model 2 layers; the weights hold 3", hint="belong together")


def test_leftover_layers_of_the_tower(copy):
    folder = copy("qwen2_vl")
    change_json(folder / "config.json", lambda c: c["vision_config"].update(depth=1))
    refused(folder, "gives the vision tower 1 layers; the weights hold 2")


ABSURD = {
    "no end of layers": ("text_config", "num_hidden_layers", 10**9),
    "four layers": ("text_config", "num_hidden_layers", 4),
    "layers of the tower": ("vision_config", "num_hidden_layers", 10**9),
    "width": ("text_config", "hidden_size", 4096),
    "inner width": ("text_config", "intermediate_size", 10**8),
    "vocabulary": ("text_config", "vocab_size", 10**9),
    "a tower's width": ("vision_config", "intermediate_size", 10**9),
    "overflow": ("text_config", "intermediate_size", 10**18),
    "nothing": ("text_config", "num_attention_heads", 0),
}


def test_absurd_sizes_are_found_before_a_network_is_built(copy):
    """It took 6.2 GB, or no end of time."""
    folder = copy()
    path = folder / "config.json"
    usual = path.read_text()
    loading.load(folder, device="cpu")
    for part, name, value in ABSURD.values():
        path.write_text(usual)
        change_json(path, lambda c, at=part, key=name, new=value: c[at].update({key: new}))
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        error = refused(folder, "config.json")
        assert time.process_time() - began < 2, error
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, error  # kB


def test_tokens_without_embeddings(copy):
    folder = copy()

    def add(tokenizer):
        last = len(tokenizer["model"]["vocab"])
        token = {"id": last, "content": "<STEP>", "special": False, "normalized": False}
        flags = {"single_word": False, "lstrip": False, "rstrip": False}
        tokenizer["added_tokens"].append({**token, **flags})

    change_json(folder / "tokenizer.json", add)
    refused(folder, "1 tokens of its tokenizer have no embedding, '<STEP>'", hint="resize")


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter(copy, tmp_path, beside):
    folder = copy() if beside else tmp_path
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    words = "beside its weights" if beside else "no model of its own"
    refused(folder, "holds an adapter", words, hint="--adapter")


def test_quantised_already(copy):
    folder = copy()
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    change_json(folder / "config.json", lambda c: c.update(quantization_config=settings))
    with pytest.raises(InputError, match=r"quantised already .'bitsandbytes'"):
        loading.load(folder, device="cpu", quantize="4bit")


def test_a_quantised_folder_on_a_cpu(builds, tmp_path):
    """Half of it stayed in the dtype it was saved in: the first picture failed."""
    pytest.importorskip("bitsandbytes")
    folder = shutil.copytree(builds("llava"), tmp_path / "packed")
    how = tf.BitsAndBytesConfig(load_in_8bit=True)
    network = tf.LlavaForConditionalGeneration.from_pretrained(
        folder, quantization_config=how, device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    network.save_pretrained(folder)
    needs = read_needs(folder)
    assert needs.packed == "bitsandbytes"
    assert needs.stored < network.get_memory_footprint() * 1.05
    with Local(device="cpu").open(folder) as backend:
        assert len(write(backend).generations) == 1
        assert 4 * needs.token == backend.adapter.kv_shape().bytes_per_token


def test_files_of_weights_that_did_not_come(copy):
    folder = copy()
    path = folder / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    refused(folder, f"cut short: it has {size - 1000:,} of {size:,} bytes", hint="go on with it")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(folder, "no safetensors file", hint="git-lfs")
    path.rename(folder / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    refused(folder, "lacks 1 of 2 files of weights: model-00002")
    index.unlink()
    refused(folder, "neither model.safetensors nor its index")


# --- words ----------------------------------------------------------------------------------------


def test_no_tokenizer(copy):
    """transformers makes one of special tokens alone, and the question is gone."""
    folder = copy("qwen2_vl")
    (folder / "tokenizer.json").unlink()
    refused(folder, "no tokenizer.json", hint="original checkpoint")


@pytest.mark.parametrize("vocabulary", [{}, {"<unk>": 0, "<image>": 3}])
def test_a_tokenizer_that_loses_words(copy, vocabulary):
    folder = copy()
    unknown = "<unk>" if vocabulary else None
    spoilt = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown or "<unk>"))
    spoilt.save(str(folder / "tokenizer.json"))
    refused(folder, "cannot spell ordinary words", hint="tokenizer.json")


TEMPLATES = {
    "raises": "{{ raise_exception('system turn missing') }}",
    "syntax": "{% for m in messages %}{{ m }",
    "mute": "{% for m in messages %}{{ m['role'] }}{% endfor %}",
    "blind": "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}",
    "twice": "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<image>{% else %}{{ c['text'] }}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}",
}
SAID = {
    "raises": "system turn missing",
    "syntax": "TemplateSyntaxError",
    "mute": "does not write the user's text",
    "blind": "writes <image> 0 times for 1 pictures",
    "twice": "more than once",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_that_cannot_be_used(copy, kind):
    """It was replaced by another one without a word."""
    folder = copy()
    (folder / "chat_template.jinja").write_text(TEMPLATES[kind])
    refused(folder, "chat template cannot be used", SAID[kind], hint="chat_template.jinja")


def test_a_template_without_an_end(copy, monkeypatch):
    folder, many = copy(), "{% for i in range(99999) %}"
    (folder / "chat_template.jinja").write_text(many * 3 + "{{ i }}" + "{% endfor %}" * 3)
    monkeypatch.setattr("cot_engine.backends.local.text._PATIENCE", 0.2)
    before = threading.active_count()
    refused(folder, "has not come to its end in 0.2 seconds")
    for _ in range(100):
        if threading.active_count() == before:
            return
        time.sleep(0.05)
    raise AssertionError("it still runs")


def test_named_templates(copy, builds):
    folder = copy()
    usual = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tools", "template": usual}, {"name": "rag", "template": "x"}]
    path = folder / "tokenizer_config.json"
    change_json(path, lambda c: c.update(chat_template=named))
    refused(folder, "2 chat templates and none called 'default'", "tools, rag")
    named[0]["name"] = "default"
    change_json(path, lambda c: c.update(chat_template=named))
    own = loading.load(builds("llava"), device="cpu").text
    assert loading.load(folder, device="cpu").text.turn("x", ()) == own.turn("x", ())


def test_a_missing_template_is_said_aloud(copy):
    folder, heard = copy(), []
    (folder / "chat_template.jinja").unlink()
    with Local(device="cpu").open(folder, on_notice=heard.append):
        assert heard == ["The model has no chat template; 'USER: ... ASSISTANT:' is used."]


def test_the_processors_own_template_wins(copy):
    """Exports of fine-tuning have both: the tokenizer's writes no brackets around the picture."""
    folder = copy("qwen2_vl")
    own = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": own}))
    other = own.replace("<|vision_start|>", "").replace("<|vision_end|>", "")
    change_json(folder / "tokenizer_config.json", lambda c: c.update(chat_template=other))
    text = loading.load(folder, device="cpu").text
    start = text.tokenizer.convert_tokens_to_ids("<|vision_start|>")
    assert start in text.turn("x", ("<|image_pad|>",))


def test_text_is_trimmed_where_the_template_trims(copy):
    folder = copy()
    path = folder / "chat_template.jinja"
    whole = loading.load(folder, device="cpu").text
    path.write_text(path.read_text().replace("c['text']", "c['text'] | trim"))
    text = loading.load(folder, device="cpu").text
    assert text.turn(" how many\n", ("<image>",)) == text.turn("how many", ("<image>",))
    assert whole.turn(" how many\n", ("<image>",)) != whole.turn("how many", ("<image>",))
    at = [places for places in text.places(" how many\n", ()) if 0 <= places[0] < 9]
    assert (at[0][0], at[-1][1]) == (1, 9)


def test_a_template_that_wants_text_is_not_shown_a_list(copy):
    folder = copy()
    path = folder / "chat_template.jinja"
    path.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    text = loading.load(folder, device="cpu").text
    assert text._decode(text.turn("x", ()))[-3:] == "[x]"


@pytest.mark.parametrize(
    ("opened", "prompt", "said"),
    [
        # As Qwen3-VL's Thinking, as DeepSeek's, as Qwen3's and GLM-4.5V's.
        ("<think>\n", "<think>\n\n</think>\n\n", "opens the reply with <think>"),
        ("<thinking>", "<thinking></thinking>\n", "opens the reply with <thinking>"),
        (
            "{% if enable_thinking is defined and enable_thinking is false %}"
            "{{ '<think>\n\n</think>\n\n' }}{% endif %}",
            "<think>\n\n</think>\n\n",
            "an empty thought where enable_thinking is false",
        ),
        ("", "", None),
    ],
)
def test_a_thought_is_left_empty(copy, opened, prompt, said):
    """What is forced stands behind it, what is chosen too; and whoever asked is told."""
    folder = copy()
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant\n", f"assistant\n{opened}"))
    loaded = loading.load(folder, device="cpu")
    for images in ((), ("<image>",)):
        whole = loaded.text._decode(loaded.text.turn("x", images))
        assert whole.endswith(f"x<|im_end|>\n<|im_start|>assistant\n{prompt}")
    told = [note for note in loaded.notes if "it is left empty" in note]
    assert len(told) == (said is not None) and (said or "") in "".join(told)
    ids = Encoder(loaded).example("x", "a red").ids  # what is learnt follows what is asked
    assert loaded.text._decode(ids).count("</think") == prompt.count("</think")
    assert loaded.text._decode(ids).endswith(f"assistant\n{prompt}a red</s>")


def test_a_family_that_thinks_of_itself(tmp_path):
    """GLM-4.1V's template says nothing of it, and its config.json nothing of the ends."""
    folder = build("glm4v", tmp_path)
    path = folder / "chat_template.jinja"
    path.write_text(re.sub(r"\{\{ '<think>[^}]*\}\}", "", path.read_text(), flags=re.DOTALL))
    (folder / "generation_config.json").unlink()
    loaded = loading.load(folder, device="cpu")
    tokens = loaded.text.tokenizer.convert_ids_to_tokens(loaded.text.turn("x", ()))
    assert tokens[-3:] == ["<think>", "</think>", "Ċ"]
    assert "The model opens its replies with a thought of itself" in "".join(loaded.notes)
    assert loaded.text.tokenizer.convert_tokens_to_ids("<|user|>") in loaded.text.eos


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "name", "value", "likely"),
    [
        ("llava", "num_additional_image_tokens", 0, "num_additional_image_tokens"),
        ("llava", "patch_size", 14, "patch_size"),
        ("llava", "vision_feature_select_strategy", "full", "vision_feature_select_strategy"),
        ("idefics3", "image_seq_len", 5, "image_seq_len"),
        ("gemma3", "image_seq_length", 5, "image_seq_length"),
    ],
)
def test_places_and_features_are_compared(copy, architecture, name, value, likely):
    folder = copy(architecture)
    change_json(folder / "processor_config.json", lambda c: c.update({name: value}))
    with Local(device="cpu").open(folder) as backend:
        assert write(backend, images=0)
        with pytest.raises(ModelError, match=r"places for a picture of which .* \d+ features") as e:
            write(backend)
    assert likely in e.value.hint


def test_a_tower_without_a_class_token(copy):
    """Where the folder says nothing of additional tokens: CLIP has one, SigLIP none (it was 730
    places for 729 features)."""
    folder = copy()
    config = tf.LlavaConfig.from_pretrained(folder)
    sizes = {name: value for name, value in CLIP.items() if name != "projection_dim"}
    config.vision_config = tf.SiglipVisionConfig(**sizes, vision_use_head=False)
    config.vision_feature_select_strategy = "full"
    network = tf.LlavaForConditionalGeneration(config)
    enliven(network)
    network.save_pretrained(folder)
    names = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    change_json(folder / "processor_config.json", lambda c: [c.pop(name) for name in names])
    with Local(device="cpu").open(folder) as backend:
        assert write(backend)
        assert backend.adapter.prepare(picture(0).pixels, "0").tokens == 16


def test_an_image_token_that_is_not_the_tokenizers(copy):
    folder = copy()
    change_json(folder / "config.json", lambda c: c.update(image_token_index=5, image_token_id=5))
    refused(folder, "image token as 5", "'<image>' is 3", hint="not be seen")


def test_no_settings_for_pictures(copy):
    folder = copy("qwen2_vl")
    (folder / "preprocessor_config.json").unlink()
    refused(folder, "does not say how pictures are prepared", hint="original checkpoint")


def test_the_image_processor_of_early_2025(copy, builds):
    folder = copy("qwen2_5_vl")
    name = "Qwen2_5_VLImageProcessor"
    path = folder / "preprocessor_config.json"
    change_json(path, lambda c: c.update(image_processor_type=name))
    pixels = [
        loading.load(where, device="cpu").adapter.prepare(picture(0).pixels, "0").inputs
        for where in (folder, builds("qwen2_5_vl"))
    ]
    assert torch.equal(*(torch.as_tensor(each["pixel_values"]) for each in pixels))


# --- hub names ------------------------------------------------------------------------------------

HUB = {
    "gated": ["config.json", "model.safetensors"],
    "pickled": ["config.json", "pytorch_model.bin"],
    "lora": ["adapter_config.json", "adapter_model.safetensors"],
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a refusal takes."""

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        name = next((name for name in HUB if name in parts), None)
        files = HUB.get(name, ())
        if name is None:
            self.say(404, {"error": "Repository not found"}, "RepoNotFound")
        elif parts[0] != "api":
            self.say(403, {"error": "Restricted."}, "GatedRepo", "Ask the authors first.")
        elif "tree" in parts:
            entry = {"type": "file", "oid": "0" * 40, "size": 2}
            self.say(200, [{**entry, "path": file} for file in files])
        else:
            names = [{"rfilename": file} for file in files]
            self.say(200, {"id": f"nobody/{name}", "sha": "a" * 40, "siblings": names})

    do_HEAD = do_GET

    def say(self, status, body, code="", message=""):
        written = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(written)))
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(written)

    def log_message(self, *_):
        pass


ASKING = """
import sys
from cot_engine.backends.local.hub import find_folder
from cot_engine.errors import ModelError
for name in sys.argv[1:]:
    try:
        find_folder(f"nobody/{name}")
    except ModelError as error:
        print(error)
sys.exit("torch" in sys.modules)
"""


def test_what_the_hub_has_against_it_is_passed_on(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", ASKING, "misspelt", *HUB],
            env={**os.environ, **there, "HF_HOME": str(tmp_path), "HF_TOKEN": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    misspelt, gated, pickled, lora = done.stdout.splitlines()
    assert "the hub knows no model of that name" in misspelt and "search=misspelt" in misspelt
    assert "behind a gate" in gated and "Ask the authors first." in gated and "HF_TOKEN" in gated
    assert "only pickled ones (pytorch_model.bin)" in pickled
    assert "holds an adapter" in lora


def test_a_hub_name_has_the_profile_of_its_folder(builds, tmp_path, monkeypatch):
    """The same weights judged otherwise by name and by folder."""
    repository = tmp_path / "models--nobody--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(builds("llava"), snapshot)
    (snapshot / "cot_engine.json").write_text('{"likelihood_weight": 1.25}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with Engine.from_pretrained("nobody/tiny", device="cpu") as engine:
        assert engine.profile.likelihood_weight == 1.25
    (snapshot / "model.safetensors").unlink()
    assert cached("nobody/tiny") is None  # a download that was cut off goes on


# --- config.json ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words", "hint"),
    [
        ({"architectures": None}, "does not say which architecture", "original"),
        ({"architectures": "LlavaForConditionalGeneration"}, "says 'LlavaFor", "original"),
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "own program", "llava-hf/llava-1.5-7b-hf"),
        (
            {"architectures": ["OvisChatModel"], "auto_map": {"AutoModel": "x.Y"}},
            "own code, which is never run",
            "-hf",
        ),
        ({"architectures": ["LavaForConditionalGeneration"]}, "not supported", "mean LlavaFor"),
        ({"architectures": ["InternVLChatModel"]}, "own program", "InternVL3-1B-hf"),
        ({"architectures": ["Gemma3nForConditionalGeneration"]}, "share keys", "Supported"),
        ({"architectures": ["PaliGemmaForConditionalGeneration"]}, "after them", "Supported"),
        ({"model_type": "llava_of_tomorrow"}, "'llava_of_tomorrow'", "A newer transformers"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "format of MLX", "original"),
        (
            {"quantization_config": {"quant_method": "fbgemm_fp8"}},
            "not installed: fbgemm-gpu",
            "original",
        ),
        ({"vision_config": {"model_type": "dinov2"}}, "'dinov2' vision tower", "clip_vision"),
    ],
)
def test_each_config_has_its_own_sentence(copy, values, words, hint):
    folder = copy()
    change_json(folder / "config.json", lambda c: c.update(values))
    error = refused(folder, words, hint=hint)
    assert "download" not in error.hint.lower()


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors"])
def test_what_reads_quantised_weights_is_not_installed(tmp_path, monkeypatch, method):
    monkeypatch.setattr(packed, "_installed", lambda name: name == "accelerate")
    config = {"quantization_config": {"quant_method": method}}
    with pytest.raises(ModelError, match=f"quantised with {method}, and what reads") as caught:
        packed.check_packed(tmp_path, config, None, "cpu")
    assert caught.value.hint.startswith("Install it: pip install")


def test_a_processor_that_is_none(copy):
    folder = copy("gemma3")
    change_json(folder / "processor_config.json", lambda c: c.update(processor_class="X"))
    refused(folder, "is no processor of pictures and text", hint="original checkpoint")


def test_pickled_and_foreign_formats(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(tmp_path, "weights in GGUF", hint="safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "only pickled ones (pytorch_model.bin)", hint="save_pretrained")


def test_end_tokens_are_those_the_folder_names(copy):
    """LlamaConfig's own 2 was added where config.json names none: SmolVLM stopped early."""
    folder = copy()
    change_json(folder / "config.json", lambda c: c.pop("eos_token_id"))
    change_json(folder / "config.json", lambda c: c["text_config"].pop("eos_token_id"))
    change_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=5))
    change_json(folder / "tokenizer_config.json", lambda c: c.update(eos_token="<|im_end|>"))
    assert loading.load(folder, device="cpu").text.eos == {5}


def test_a_wish_that_is_not_granted_is_named(copy):
    folder = copy()
    path = folder / "generation_config.json"
    change_json(path, lambda c: c.update(repetition_penalty=1.05))
    assert (
        "repetition_penalty of 1.05 is not applied" in loading.load(folder, device="cpu").notes[0]
    )
