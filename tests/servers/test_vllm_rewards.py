"""A reward model of a published architecture behind a real vLLM, Qwen3-VL-Reranker's, which sees
pictures: what it says at each of its endpoints is what plain transformers say."""

from __future__ import annotations

import asyncio
import json
import math

import numpy as np
import pytest
import torch
import transformers as tf
from near import largest
from tiny_models import build, picture
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from cot_engine.backends.server.opener import Server
from cot_engine.core.requests import Dialogue, Measure, Piece, Turn

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
