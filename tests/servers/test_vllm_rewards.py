"""Reward models of published architectures behind a real vLLM: Qwen3-VL-Reranker's, which sees
pictures, at each of its endpoints, and Qwen2.5-Math-PRM's, which has numbers for each step. What
they say is what plain transformers say."""

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
from tiny_models import TEMPLATE, TEXT, build, enliven, picture, tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from cot_engine import Engine
from cot_engine.backends.server.opener import Server
from cot_engine.core.events import Scored
from cot_engine.core.requests import Dialogue, Measure, Piece, Turn
from cot_engine.errors import ModelError
from cot_engine.testing import ScriptedBackend

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SCORE = 1e-4
"""How far a logit may be off, both in float32."""

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
LOOKS = picture(6, 48, 32), picture(7, 32, 64)
RESIZED = picture(5, 40, 28)  # to whole patches, by it and by us: the pixels are rounded otherwise
QUESTION, ANSWERS = "how many red circles", ("two red circle", "one blue square, so one", "A")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As published but for its size, and with heads and sections of positions that vLLM's build for
    CPUs has a kernel for."""
    positions = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
    positions["mrope_interleaved"] = True  # as published; transformers always does
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
    """Is this answer right?"""
    turns = Turn("user", (Piece(QUESTION),), images), Turn("assistant", (Piece(answer),))
    return Dialogue(turns, True)


def measured(backend, *dialogues):
    return asyncio.run(backend.measure(Measure("s", dialogues)))


@pytest.mark.parametrize("task", ["classify", "score", "rerank", "pooling"])
def test_a_vision_reranker_says_what_plain_transformers_do(reranker, stock, task):
    with (
        Server(task=task).open(f"{reranker.url}/v1#activation=false") as raw,
        Server(task=task).open(f"{reranker.url}/v1#activation=true") as squeezed,
        Server(task=task).open(f"{reranker.url}/v1") as as_it_is,
    ):
        for images in ((), LOOKS[:1], LOOKS, (RESIZED,)):
            asked = [right(answer, images) for answer in ANSWERS]
            found = measured(raw, *asked)
            bound = raw.estimate(Measure("s", tuple(asked)))
            want, tokens = [], 0
            for answer in ANSWERS:
                text = stock.chat(QUESTION, answer, images)
                if task in ("score", "rerank"):
                    text = PAIR.format(query=SHOWN * len(images) + QUESTION, document=answer)
                number, count = stock.score(text, images)
                want, tokens = [*want, number], tokens + count
            numbers = [rows[0][0] for rows in found.numbers]
            apart = largest(np.subtract(numbers, want).tolist())
            print(f"{task}, {len(images)} pictures: {apart:.1e} apart")
            if images == (RESIZED,):
                assert apart < 0.02
                continue
            assert apart < SCORE
            assert found.usage.prefilled == tokens <= bound.prefilled
            assert found.usage.encodes == 3 * len(images)
            # In another order, or with another sign, they are seen to be others.
            assert largest(np.subtract(numbers, want[1:] + want[:1]).tolist()) > 100 * SCORE
            assert largest(np.add(numbers, want).tolist()) > 100 * SCORE
            sigmoid = [1 / (1 + math.exp(-number)) for number in want]
            own = want if task == "pooling" else sigmoid
            for backend, numbers in ((squeezed, sigmoid), (as_it_is, own)):
                got = [rows[0][0] for rows in measured(backend, *asked).numbers]
                assert largest(np.subtract(got, numbers).tolist()) < SCORE


# --- a number for each step -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The folder of a process reward model: Qwen2 and two layers over its states."""
    folder = tmp_path_factory.mktemp("prm")
    words = tokenizer({"step": "<extra_0>"})
    words.chat_template = TEMPLATE.replace("IMAGE", "")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    model = tf.Qwen2Model(tf.Qwen2Config(vocab_size=len(words), **{**TEXT, **heads})).eval()
    enliven(model)
    layers = {"0.weight": (64, 64), "0.bias": (64,), "2.weight": (2, 64), "2.bias": (2,)}
    head = {f"score.{name}": torch.randn(*size) / 4 for name, size in layers.items()}
    words.save_pretrained(folder)
    model.config.architectures = ["Qwen2ForProcessRewardModel"]
    model.config.save_pretrained(folder)
    body = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    save_file({**body, **head}, folder / "model.safetensors")
    return folder, tf.AutoTokenizer.from_pretrained(folder), model, head


@pytest.fixture(scope="module")
def process(steps, serve):
    folder, words, *_ = steps
    tag = words.convert_tokens_to_ids("<extra_0>")
    pooler = json.dumps({"step_tag_id": tag})
    with serve(folder, "--runner", "pooling", "--pooler-config", pooler) as made:
        yield made


@torch.inference_mode()
def by_steps(steps, texts):
    """The two logits at each step, by plain transformers: [steps, 2]."""
    _, words, model, head = steps
    turns = [("user", QUESTION), *(("assistant", text + "<extra_0>") for text in texts)]
    messages = [{"role": r, "content": [{"type": "text", "text": text}]} for r, text in turns]
    text = words.apply_chat_template(messages, tokenize=False)
    ids = words(text, add_special_tokens=False, return_tensors="pt").input_ids
    states = model(input_ids=ids, use_cache=False).last_hidden_state[0]
    states = states[ids[0] == words.convert_tokens_to_ids("<extra_0>")]
    hidden = torch.relu(states @ head["score.0.weight"].T + head["score.0.bias"])
    return hidden @ head["score.2.weight"].T + head["score.2.bias"]


def test_each_step_has_its_own_numbers(steps, process):
    texts = ("one red circle", "a blue one, so two", "two")
    step = (Piece("<extra_0>", True, True),)
    turns = [Turn("assistant", (Piece(text), *step)) for text in texts]
    asked = Dialogue((Turn("user", (Piece(QUESTION),)), *turns))
    want = by_steps(steps, texts)
    wanted = {"": want, "&activation=false": want, "&activation=true": want.softmax(-1)}
    for more, numbers in wanted.items():
        with Server().open(f"{process.url}/v1#task=pooling{more}") as backend:
            found = torch.tensor(measured(backend, asked).numbers[0])
        apart = largest((found - numbers).flatten().tolist())
        print(f"two numbers of three steps{more}: {apart:.1e} apart")
        assert found.shape == (3, 2) and apart < SCORE
        assert largest((found - numbers.roll(1, 0)).flatten().tolist()) > 100 * SCORE
        assert largest((found - numbers.flip(1)).flatten().tolist()) > 100 * SCORE
    # Places that it does not pool at are seen to be too few.
    unmarked = replace(asked, turns=(*asked.turns, Turn("user", (Piece("so?", True, True),))))
    with (
        Server(task="pooling").open(f"{process.url}/v1") as backend,
        pytest.raises(ModelError, match="3 rows of numbers to 4 places"),
    ):
        measured(backend, unmarked)


def test_a_search_whose_steps_it_scores(steps, process, tmp_path):
    """By a file such as a user writes: the lowest probability of its steps is a response's."""
    path = tmp_path / "prm.toml"
    path.write_text(
        'kind = "head"\naggregate = "min"\noutput = 1\nlow = 0.0\nhigh = 1.0\n'
        f'model = "{process.url}/v1#task=pooling&activation=true"\n'
        '[[turns]]\ntext = "{question}"\n'
        '[[turns]]\nspeaker = "assistant"\ntext = "{step}<extra_0>{mark}"\neach = true\n',
        "utf-8",
    )
    with Engine(ScriptedBackend()) as engine:
        answer = engine.solve(
            None, QUESTION, strategy="best-of-n", n=3, parameters={"verifier": str(path)}
        )
    found = {id: n for e in answer.trace if isinstance(e, Scored) for id, n in e.scores.items()}
    texts = {c.id: c.text for e in answer.trace for c in getattr(e, "chains", ())}
    assert len(found) == 3 and answer.usage["verify"].calls == 3
    for id, number in found.items():
        parts = [part.split("</")[0] for part in texts[id].split(">")[1::2] if part[:1] != "<"]
        each = by_steps(steps, parts).softmax(-1)[:, 1]
        assert len(parts) >= 3 and largest([number - float(each.min())]) < SCORE
        assert abs(number - float(each.mean())) > 10 * SCORE
