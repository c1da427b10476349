"""Rows of several pictures and several questions: learnt whole, or refused with the count by all
who use rows; nothing of them vanishes without a word."""

import json
from dataclasses import replace

import PIL.Image
import pytest

from cot_engine.backends.local import loading
from cot_engine.engine.facade import model_path
from cot_engine.errors import InputError
from cot_engine.training.check import check
from cot_engine.training.examples import IGNORE, Encoder
from cot_engine.training.questions import read_questions
from cot_engine.training.row import standard_answer
from cot_engine.training.rows import TrainingRow, read_rows, row_json
from cot_engine.training.sft_config import parse_config
from cot_engine.training.stream import Steps, load_corpus

REPLY = "<SUMMARY>I look.</SUMMARY><CAPTION>A red one.</CAPTION><REASONING>It is {0}.</REASONING>"
REPLY += "<CONCLUSION>{0}</CONCLUSION>"
SYSTEM = {"from": "system", "value": "Be brief."}


def said(*values):
    return [{"from": ("human", "gpt")[k % 2], "value": v} for k, v in enumerate(values)]


def row(id="1", *values, image="a.png", **more):
    values = values or ("<image>\nWhat is it?", REPLY.format("red"))
    found = {"id": id, "conversations": said(*values), **more}
    return found if image is None else {"image": image, **found}


ONE = said("<image>\nWhat is it?", REPLY.format("red"))
TWO = ("<image>\nWhat is it?", REPLY.format("red"), "And where?", REPLY.format("left"))
REFUSED = {  # what nobody could learn as it stands: the check that finds it, and what is said
    "a system turn": (row(conversations=[SYSTEM, *ONE]), "turns", "Turn 1 is from 'system'"),
    "a tool": (row(conversations=[*ONE, {"from": "t" * 99, "value": ""}]), "turns", "'tttt"),
    "a question alone": (row("1", *TWO[:3]), "turns", "from human, gpt, human"),
    "unanswered": (row(conversations=[*ONE[:1], *said("So?", TWO[1])]), "turns", "human, human"),
    "gpt first": (row(conversations=[ONE[1], *ONE]), "turns", "from gpt, human, gpt"),
    "a marker amid": (row("1", "Is <image> red?", TWO[1]), "image-marker", "amid the text"),
    "a marker later": (
        row("1", "What?", TWO[1], "<image>\nAnd?", TWO[3]),
        "image-marker",
        "in a later question",
    ),
    "a marker too many": (row("1", "<image><image>\nWhat?", TWO[1]), "image-marker", "has 2 <im"),
    "a marker too few": (row(image=["a.png", "b.png"]), "image-marker", "1 <image>, and 2 pic"),
    "no picture": (row(image=None), "image-marker", "1 <image>, and 0 pictures"),
    "an empty list": (row(image=[]), "image-marker", "1 <image>, and 0 pictures"),
    "before and after": (
        row("1", "<image>\nWhat?<image>", TWO[1], image=["a.png", "b.png"]),
        "image-marker",
        "amid the text",
    ),
    "a marker in the reply": (row("1", "What?", TWO[1] + "<image>"), "image-marker", "response"),
    "one missing": (row("1", "What?", TWO[1], image=["a.png", "c.png"]), "image-missing", "c.png"),
    "null in a list": (row(image=["a.png", None]), "row", "image holds null"),
    "both keys": (row(images=["a.png"]), "row", "an image and images"),
    "an object": (row(image=None, images={"path": "a.png"}), "row", "images is an object"),
}


@pytest.fixture
def write(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        PIL.Image.new("RGB", (28, 28), colour).save(tmp_path / f"{name}.png")

    def written(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    return written


def config(path, **data):
    table = {"output": str(path.parent / "out"), "model": {"path": "bundled"}}
    table |= {"data": {"rows": path.name, "workers": 0, **data}, "train": {"steps": 1, "batch": 1}}
    return parse_config(table, path.parent)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learnt_is_refused_by_all_with_the_count(write, name):
    found, code, words = REFUSED[name]
    path = write(found, row("2", "What is it?", REPLY.format("b")))
    report = check(path)
    (finding, *more) = [f for f in report.findings if f.severity == "error"]
    assert (finding.line, finding.check) == (1, code) and words in finding.said and not more
    assert (report.good, report.bad) == (1, 1)
    with pytest.raises(InputError, match="1 rows cannot be used") as caught:
        load_corpus(config(path), None, 100)
    assert words in str(caught.value) or "no picture" in str(caught.value)
    entry, other = read_questions(path)
    assert other.make().answer == "b"
    with pytest.raises(InputError) as caught:
        entry.make()
    assert words in str(caught.value) or name == "one missing"


LEARNT = {  # what is read: pictures, questions
    "one": (row(), ["a"], 1),
    "a list of one": (row(image=["a.png"]), ["a"], 1),
    "images": (row(image=None, images=["a.png"]), ["a"], 1),
    "images, a text": (row(image=None, images="a.png"), ["a"], 1),
    "image null": (row("1", "Hm?", TWO[1], image=None, images=None), [], 1),
    "images empty": (row("1", "Hm?", TWO[1], image=None, images=[]), [], 1),
    "null beside": ({**row(image=None, images=["a.png"]), "image": None}, ["a"], 1),
    "two": (row("1", "<image>\n<image>\nSame?", TWO[1], image=["b.png", "a.png"]), ["b", "a"], 1),
    "on a line": (
        row("1", "<image> <image>\nHm?", TWO[1], image=["b.png", "a.png"]),
        ["b", "a"],
        1,
    ),
    "behind": (row("1", "Hm?\n<image><image>", TWO[1], image=["b.png", "a.png"]), ["b", "a"], 1),
    "unmarked": (row("1", "Hm?", TWO[1], image=None, images=["a.png", "b.png"]), ["a", "b"], 1),
    "twice": (row("1", "Hm?", TWO[1], image=["a.png", "a.png"]), ["a", "a"], 1),
    "two questions": (row("1", *TWO), ["a"], 2),
    "all": (row("1", "Hm?", *TWO[1:] * 2, image=["a.png", "b.png"]), ["a", "b"], 3),
}


@pytest.fixture(scope="module")
def encoder():
    return Encoder(loading.load(loading.find_folder(model_path("bundled")), device="cpu"))


@pytest.mark.parametrize("name", LEARNT)
def test_what_is_read_is_learnt_and_written_again(write, encoder, name):
    found, names, questions = LEARNT[name]
    if name == "all":
        found = row("1", "Hm?", TWO[1], *TWO[2:], *TWO[2:], image=["a.png", "b.png"])
    path = write(found)
    (read,) = read_rows(path)
    assert [image[:1] for image in read.images] == names and len(read.turns) == questions
    assert json.loads(row_json(read)) == found
    assert "<image>" not in read.question
    report = check(path)
    assert not [f for f in report.findings if f.severity == "error"], report.findings
    (item,) = load_corpus(config(path), encoder, 10_000).train.items
    assert [p.name[:1] for p in item.pictures] == names and len(item.later) == questions - 1
    steps = Steps([item] * 8, encoder, config(path), micro=1, limit=10_000)
    (batch,) = steps.micro_batches(0)
    labels = [token for token in batch["labels"][0].tolist() if token != IGNORE]
    replies = "".join(f"{reply}</s>" for _, reply in read.turns)
    assert encoder.tokenizer.decode(labels) == replies, "every reply is learnt, and nothing else"
    assert ("pixel_values" in batch) == bool(names)
    if names:
        assert len(batch["pixel_values"]) == len(names)
    answers = [entry.make() for entry in read_questions(path)]
    assert [len(one.pictures) for one in answers] == [len(names)] * questions


def test_every_question_of_a_conversation_is_checked(write):
    report = check(write(row("1", *TWO[:3], "It is left.")))
    assert {f.check for f in report.findings if f.severity == "error"} >= {"missing"}
    assert all(f.said.startswith("Question 2: ") for f in report.findings)


def test_new_texts_are_written_into_a_kept_conversation():
    turns = [{**turn, "weight": 1} for turn in said(*TWO)]
    found = TrainingRow(
        "1", "a.png", "Why?", "So.", {"conversations": turns}, (), (("How?", "Thus."),)
    )
    written = json.loads(row_json(found))["conversations"]
    assert [turn["value"] for turn in written] == ["<image>\nWhy?", "So.", "How?", "Thus."]
    assert all(turn["weight"] == 1 for turn in written)


def test_a_row_carries_its_standard_answer(write, encoder):
    """Of several the one that the reply comes to: the format direct teaches it."""
    several = row(answer=["crimson", "red"])
    path = write(several, row("2", answer="blood"), row("3", answer=7), row("4", *TWO, answer="x"))
    rows = list(read_rows(path))
    assert [standard_answer(each) for each in rows] == ["red", "blood", "7", "x"]
    direct = replace(config(path), format="direct")
    items = load_corpus(direct, encoder, 10_000).train.items
    # A standard answer is one question's: with several each is taught its own conclusion.
    assert [item.response for item in items] == ["red", "blood", "7", "red"]
    assert items[3].later == (("And where?", "left"),)
    assert read_questions(path)[0].make().grader.accepted == ("crimson", "red")
