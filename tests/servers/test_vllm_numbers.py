"""Verifiers on a real vLLM that pools or classifies: its numbers are those of the same model in
this process, and a search that it scores is the one that the model here would have scored."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from near import largest
from safetensors.torch import save_file
from tiny_models import build, picture
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from cot_engine import Engine
from cot_engine.backends.local.opener import Local
from cot_engine.backends.server.opener import Server
from cot_engine.cli import main
from cot_engine.core.events import Notice, Scored
from cot_engine.core.requests import Dialogue, Measure, Piece, Turn
from cot_engine.engine.facade import model_path
from cot_engine.errors import InputError, ModelError
from cot_engine.questions.data import load_data

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CPU = {"device": "cpu", "dtype": "float32"}
STATE = 1e-4
"""How far a number of a final state may be off, both in float32; the largest are about 5."""
SCORE = 1e-4
SIZES = model_path("bundled")


def said(speaker, text, *images):
    return Turn(speaker, (Piece(text),), images)


def measured(backend, *dialogues, choices=()):
    return asyncio.run(backend.measure(Measure("s", dialogues, choices)))


@pytest.fixture(scope="module")
def items():
    return load_data("scenes", n=6).items


@pytest.fixture(scope="module")
def bundled():
    with Local(**CPU).open("bundled") as opened:
        yield opened


# --- the final state ------------------------------------------------------------------------------


def asked(items):
    """With a picture and without, one turn, two and three, begun and not."""
    for item in items:
        question, images = item.problem().question, item.problem().images
        for shown in (images, ()):
            user = said("user", question, *shown)
            answer = said("assistant", "There are 2 red circles and a blue one, so it is two.")
            yield Dialogue((user,), True)
            yield Dialogue((user, answer))
            yield Dialogue((user, answer, said("user", "Is that right?")), True)


def test_a_pooled_state_is_the_one_of_the_local_model(pooling, bundled, items):
    dialogues = list(asked(items))
    here = measured(bundled, *dialogues)
    with Server(task="pooling").open(f"{pooling.url}/v1") as backend:
        there = measured(backend, *dialogues)
    with Server(task="pooling").open(f"{pooling.url}/v1#activation=true") as backend:
        short = measured(backend, dialogues[0]).numbers[0][0]
    states = [np.array([rows[0] for rows in each.numbers]) for each in (here, there)]
    apart = abs(states[0] - states[1]).max(axis=1)
    print(f"{len(dialogues)} states of {states[0].shape[1]}: {apart.max():.1e} apart at most")
    assert largest(apart.tolist()) < STATE
    # The same tokens were read, and of each dialogue all of them are counted.
    tokens = [len(bundled._dialogue(dialogue)[0].ids) for dialogue in dialogues]
    assert there.usage.prefilled == sum(tokens)
    assert there.usage.encodes == len(dialogues) // 2
    # Any other dialogue's state is seen to be another, and so is one divided by its length.
    others = abs(states[1][:, None] - states[0][None]).max(axis=2)
    np.fill_diagonal(others, np.inf)
    assert others.min() > 100 * STATE
    assert largest([math.hypot(*short) - 1]) < 1e-5 < abs(np.array(short) - states[0][0]).max()


def test_the_place_of_a_state_is_the_last_token(pooling, bundled, items):
    """A text that ends one token earlier has another state: LAST is the last."""
    question = items[0].problem().question
    whole, cut = (Dialogue((said("user", question), said("assistant", t))) for t in ("A 2", "A"))
    with Server(task="pooling").open(f"{pooling.url}/v1") as backend:
        there = measured(backend, whole).numbers[0][0]
    assert largest(np.subtract(there, measured(bundled, whole).numbers[0][0]).tolist()) < STATE
    assert largest(np.subtract(there, measured(bundled, cut).numbers[0][0]).tolist()) > 0.1


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    save_file({"score.weight": torch.randn(1, 256) / 16, "score.bias": torch.randn(1)}, path)
    return path


def toml(folder, name, model, head, **more):
    path = folder / f"{name}.toml"
    table = {"kind": "head", "model": model, "head": str(head), "sigmoid": True, **more}
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()), "utf-8")
    return path


def scores(answer):
    return [n for e in answer.trace if isinstance(e, Scored) for n in e.scores.values()]


@pytest.mark.parametrize("strategy", ["stage-beam", "weighted-vote"])
def test_a_search_scored_by_a_pooling_server_is_the_one_scored_here(
    pooling, items, head, tmp_path, strategy
):
    """The same model searches, here; its own states are read by a head, there and here."""
    there = toml(tmp_path, "there", f"{pooling.url}/v1#task=pooling&sizes={SIZES}", head)
    here = toml(tmp_path, "here", "bundled", head)
    with here.open("a") as file:
        file.write('[options]\ndevice = "cpu"\ndtype = "float32"\n')
    torch.manual_seed(6)
    save_file({"w": torch.randn(1, 256) / 16}, tmp_path / "another.safetensors")
    another = toml(tmp_path, "another", "bundled", tmp_path / "another.safetensors")
    answers = {}
    with Engine.from_pretrained(**CPU) as engine:
        for verifier in (there, here, another):
            answers[verifier] = [
                engine.solve(*item.problem().images, item.problem().question,
                             strategy=strategy, n=4, parameters={"verifier": str(verifier)})
                for item in items
            ]  # fmt: skip
    for one, other in zip(answers[there], answers[here], strict=True):
        assert one.text == other.text and one.chain.text == other.chain.text
        assert len(scores(one)) >= 4
        assert largest(np.subtract(scores(one), scores(other)).tolist()) < SCORE
        used, own = one.usage["verify"], other.usage["verify"]
        assert (
            used.calls >= 4 and used.decoded == 0 and used.encodes >= 4 and "judge" not in one.usage
        )
        # All of each dialogue is counted, picture and all: no such server tells what it had cached.
        assert used.prefilled > own.prefilled + own.cached and used.flops > own.flops > 0
        assert one.usage["generate"] == replace(
            other.usage["generate"], seconds=one.usage["generate"].seconds
        )
        assert not [e for e in one.trace if isinstance(e, Notice) and "likelihood" in e.text]
    changed = zip(answers[there], answers[another], strict=True)
    assert any(one.chain.text != other.chain.text for one, other in changed)


def test_the_command_line_asks_two_servers(url, pooling, items, head, tmp_path, capsys):
    """One writes, the other scores; what scoring cost is in a role of its own."""
    verifier = toml(tmp_path, "there", f"{pooling.url}/v1#task=pooling", head)
    problem = items[0].problem()
    shown = tmp_path / "scene.png"
    problem.images[0].pixels.save(shown)
    command = ["solve", str(shown), problem.question, "-m", url, "-s", "stage-beam", "-n", "2"]
    assert main([*command, "-p", f"verifier={verifier}", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    print(told["usage"])
    assert told["answer"] and "judge" not in told["usage"]
    assert told["usage"]["verify"]["calls"] >= 2 and told["usage"]["verify"]["prefilled"] > 0
    assert told["usage"]["verify"]["decoded"] == 0 < told["usage"]["generate"]["decoded"]


# --- a vision model that classifies: the architecture of Qwen3-VL-Reranker ------------------------

RERANKER = {
    "architectures": ["Qwen3VLForSequenceClassification"],
    "classifier_from_token": ["B", "A"],  # its no and yes: words that the tiny tokenizer has
    "is_original_qwen3_reranker": True,
}
PAIR = (
    "<|im_start|>system\nIs the answer right?<|im_end|>\n<|im_start|>user\n"
    "Query: {query}\nDocument: {document}<|im_end|>\n<|im_start|>assistant\n"
)
SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"
LOOKS = picture(5), picture(6, 48, 64)
QUESTION, ANSWERS = "how many red circles", ("two red circle", "one blue square, so one", "A")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As published but for its size, and with heads and sections of positions that vLLM's build for
    CPUs has a kernel for."""
    positions = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
    positions["mrope_interleaved"] = True  # published ones say it; transformers takes it for granted
    made = tmp_path_factory.mktemp("qwen3")
    build("qwen3_vl", made, head_dim=32, rope_parameters=positions)
    config = json.loads((made / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = False  # published ones say it, and vLLM asks
    (made / "config.json").write_text(json.dumps(config))
    # Of a query and a document; of a chat the model's own.
    side = "{{{{ messages | selectattr('role', 'eq', '{}') | map(attribute='content') | first }}}}"
    sides = {role: side.format(role) for role in ("query", "document")}
    own = (made / "chat_template.jinja").read_text()
    (made / "both.jinja").write_text(
        "{% if messages[0]['role'] == 'query' %}" + PAIR.format(**sides)
        + "{% else %}" + own + "{% endif %}"
    )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def reranker(folder, serve):
    flags = ["--runner", "pooling", "--convert", "classify"]
    flags += ["--chat-template", str(folder / "both.jinja"), "--hf-overrides", json.dumps(RERANKER)]
    with serve(folder, *flags) as made:
        yield made


class Stock:
    """The same folder in plain transformers: its words, its pictures, a forward without a cache."""

    def __init__(self, folder):
        self.model = tf.Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype="float32")
        self.tokenizer = tf.AutoTokenizer.from_pretrained(folder)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.no, self.yes = self.tokenizer.convert_tokens_to_ids(RERANKER["classifier_from_token"])

    @torch.inference_mode()
    def score(self, text, images=()):
        """How much likelier yes is than no behind a text, in logits; and its tokens."""
        more = {}
        if images:
            more = self.images([image.pixels for image in images], return_tensors="pt")
            for grid in more["image_grid_thw"]:
                text = text.replace("<|image_pad|>", "<PAD>" * int(grid.prod() // 4), 1)
            text = text.replace("<PAD>", "<|image_pad|>")
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        if images:
            pads = ids == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
            more = {**more, "mm_token_type_ids": pads.int()}
        logits = self.model(input_ids=ids, use_cache=False, **more).logits[0, -1]
        return float(logits[self.yes] - logits[self.no]), ids.shape[1]

    def chat(self, question, answer, images):
        turns = (("user", [{"type": "image"}] * len(images), question), ("assistant", [], answer))
        messages = [
            {"role": role, "content": [*shown, {"type": "text", "text": text}]}
            for role, shown, text in turns
        ]
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )


@pytest.fixture(scope="module")
def stock(folder):
    return Stock(folder)


def right(answer, images):
    return Dialogue((said("user", QUESTION, *images), said("assistant", answer)), True)


@pytest.mark.parametrize("task", ["classify", "score", "rerank", "pooling"])
def test_a_vision_reranker_says_what_plain_transformers_do(reranker, stock, task):
    with (
        Server(task=task).open(f"{reranker.url}/v1#activation=false") as raw,
        Server(task=task).open(f"{reranker.url}/v1#activation=true") as squeezed,
        Server(task=task).open(f"{reranker.url}/v1") as as_it_is,
    ):
        for images in ((), LOOKS[:1], LOOKS):
            asked = [right(answer, images) for answer in ANSWERS]
            found = measured(raw, *asked)
            want, tokens = [], 0
            for answer in ANSWERS:
                text = stock.chat(QUESTION, answer, images)
                if task in ("score", "rerank"):
                    text = PAIR.format(query=SHOWN * len(images) + QUESTION, document=answer)
                number, count = stock.score(text, images)
                want, tokens = [*want, number], tokens + count
            numbers = [rows[0][0] for rows in found.numbers]
            print(task, len(images), [f"{a - b:.1e}" for a, b in zip(numbers, want, strict=True)])
            assert largest(np.subtract(numbers, want).tolist()) < SCORE
            assert found.usage.prefilled == tokens and found.usage.encodes == 3 * len(images)
            # In another order, or with another sign, they are seen to be others.
            assert largest(np.subtract(numbers, want[1:] + want[:1]).tolist()) > 100 * SCORE
            assert largest(np.add(numbers, want).tolist()) > 100 * SCORE
            sigmoid = [1 / (1 + math.exp(-number)) for number in want]
            own = want if task == "pooling" else sigmoid
            for backend, numbers in ((squeezed, sigmoid), (as_it_is, own)):
                got = [rows[0][0] for rows in measured(backend, *asked).numbers]
                assert largest(np.subtract(got, numbers).tolist()) < SCORE


def test_what_a_server_was_not_started_for_is_an_error(reranker, pooling):
    """Each names the endpoint; a server of states has no classes."""
    for server, answer, error, match in (
        (pooling, "A", ModelError, "404"),
        (reranker, "red " * 2000, InputError, "maximum context length is 1024"),
    ):
        with (
            Server(task="classify").open(f"{server.url}/v1") as backend,
            pytest.raises(error, match=match),
        ):
            measured(backend, right(answer, ()))
