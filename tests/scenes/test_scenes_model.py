"""The bundled model's files, its tokenizer, and what it answers."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from brute_force import brute_force
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cot_engine.bundled
from cot_engine.scenes import grade, sample

BUNDLED = Path(cot_engine.bundled.__file__).parent
IMAGES = Path(__file__).parents[2] / "examples" / "images"
pytestmark = pytest.mark.skipif(
    not (BUNDLED / "model.safetensors").exists(), reason="the weights are not in this checkout"
)


def pictures():
    return tomllib.loads((IMAGES / "questions.toml").read_text())["picture"]


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(BUNDLED)


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(BUNDLED, dtype=torch.float32).eval()


def test_size():
    assert sum(f.stat().st_size for f in BUNDLED.iterdir() if f.is_file()) < 30e6


@given(text=st.text())
def test_any_text_comes_back(processor, text):
    ids = processor.tokenizer(text, split_special_tokens=True).input_ids
    assert processor.tokenizer.decode(ids) == text


def test_coordinates_numbers_and_tags_are_one_token(processor):
    one = [f"{c}{r}" for c in "ABCD" for r in "1234"] + [str(n) for n in range(100)]
    one += [" " + text for text in one]
    one += [
        f"<{slash}{s}>"
        for slash in ("", "/")
        for s in ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
    ]
    for text in one:
        ids = processor.tokenizer(text).input_ids
        assert len(ids) == 1 and ids[0] not in processor.tokenizer.all_special_ids, text


def test_prompt(processor):
    p = sample(0, 0)
    turn = {
        "role": "user",
        "content": [{"type": "image", "image": p.image}, {"type": "text", "text": p.prompt}],
    }
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    assert text == f"<s><image>{p.prompt}\n"
    reply = {"role": "assistant", "content": [{"type": "text", "text": p.response}]}
    assert processor.apply_chat_template([turn, reply]) == text + p.response + "</s>"
    ids = processor(images=p.image, text=text, return_tensors="pt")["input_ids"][0].tolist()
    assert ids[0] == processor.tokenizer.bos_token_id and ids.count(3) == 16


def test_example_answers_are_right():
    for picture in pictures():
        _, split, seed, index = picture["scene"].split("/")
        things = sample(int(seed), int(index), split).objects
        for row in picture["questions"]:
            assert brute_force(row["question"], things) == row["answer"]


def test_model_answers_the_examples(model, processor):
    for picture in pictures():
        image = Image.open(IMAGES / picture["image"])
        for row in picture["questions"]:
            text = f"<s><image>{row['question']}\n"
            inputs = processor(images=image, text=text, return_tensors="pt")
            out = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
            reply = processor.decode(out, skip_special_tokens=True)
            assert grade(reply, row["answer"]), (row, reply)


@pytest.mark.parametrize(
    ("detail", "text_only"),
    [("normal", False), ("brief", False), ("full", False), ("normal", True)],
)
def test_model_on_held_out_questions(model, processor, detail, text_only):
    from cot_engine.scenes.evaluate import measure, respond

    problems = [sample(0, i, "test", detail=detail, text_only=text_only) for i in range(30)]
    result = measure(problems, respond(model, processor, problems))
    # Floors well under what 2,000 questions gave: this is for noticing that something broke.
    assert result["valid_stages"]["share"] >= 0.96
    assert result["answers"]["share"] >= 0.55
    assert text_only or result["objects"]["share"] >= 0.9
