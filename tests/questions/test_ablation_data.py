"""Data sets for ablations: what is read, how it is graded, and every way a file can be wrong."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import random
import string
import tempfile
import tomllib
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_engine import scenes
from cot_engine.core.problem import Problem
from cot_engine.errors import ConfigError, ImageError, InputError
from cot_engine.images.load import load_image
from cot_engine.questions.data import DataSet, load_data
from cot_engine.questions.grading import RULES

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples" / "images"


def picture(colour="red"):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def base64_of(data):
    return base64.b64encode(data).decode()


RED, BLUE = base64_of(picture("red")), base64_of(picture("blue"))


@pytest.fixture
def jsonl(tmp_path):
    """Write the objects (or raw lines) as a JSONL file beside a picture red.png; its path."""

    def write(*lines, name="data.jsonl", end="\n"):
        (tmp_path / "red.png").write_bytes(picture("red"))
        text = end.join(x if isinstance(x, str) else json.dumps(x) for x in lines)
        (tmp_path / name).write_bytes(text.encode())
        return str(tmp_path / name)

    return write


@pytest.fixture
def tsv(tmp_path):
    """Write rows (dicts) as a TSV file; its path."""

    def write(*rows, name="data.tsv"):
        (tmp_path / "red.png").write_bytes(picture("red"))
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            writer = csv.DictWriter(file, columns, delimiter="\t", restval="")
            writer.writeheader()
            writer.writerows(rows)
        return str(tmp_path / name)

    return write


def line(**values):
    return {"question": "What colour is it?", "answer": "red", "image": "red.png"} | values


def cells(index="1", **values):
    return {"index": index, "question": "What?", "answer": "red", "image": RED} | values


def fails(source, *words, error=InputError, **options):
    """Loading fails with an error that holds the words and a next step."""
    with pytest.raises(error) as caught:
        load_data(source, **options)
    assert caught.value.hint.strip(), "no next step"
    for word in words:
        assert word in str(caught.value), str(caught.value)


# --- scenes --------------------------------------------------------------------------------------


def test_the_frozen_scenes():
    data = load_data("scenes", n=12)
    assert data.name == scenes.TEST_SET and data.notes == ()
    assert "rules, without a model" in data.rule
    for item, scene in zip(data.items, scenes.test_set(12), strict=True):
        assert (item.id, item.question, item.answer) == (scene.id, scene.prompt, scene.answer)
        assert item.type == scene.type
        problem = item.problem()
        assert problem == Problem(scene.id, scene.prompt, (load_image(scene.image),))
        assert item.grade(scene.answer) == 1.0 and item.grade("purple 17 maybe") == 0.0
        assert item.facts("CAPTION", scene.staged["CAPTION"]) == 1.0
        assert item.facts("CAPTION", "A1 large red star.") == 0.0
        assert item.facts("REASONING", "So 2.") is None
    assert load_data("scenes/test", n=12) == load_data("scenes", n=12, split="test") == data


def test_scenes_out_of_distribution():
    data = load_data("scenes/ood", n=18)
    assert data.name == scenes.OOD_SET
    assert [item.id for item in data.items] == [scene.id for scene in scenes.ood_set(18)]
    assert load_data("scenes", split="ood", n=18) == data


def test_1000_scenes_where_nothing_is_said():
    assert len(load_data("scenes").items) == 1000


def test_scenes_by_seed():
    first, second = (load_data("scenes/val", n=3, seed=seed) for seed in (0, 5))
    assert first.items[0].id == "scenes-2/val/0/0" and second.items[2].id == "scenes-2/val/5/2"
    assert first.digest != second.digest and first.name != second.name
    assert load_data("scenes", split="val", n=3, seed=5) == second


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("scene", {}, ["'scene'", "Did you mean scenes", ".jsonl or .tsv"]),
        ("scenes/train", {}, ["scenes/train", "scenes/val"]),
        ("scenes/val", {"split": "test"}, ["split is 'test'", "scenes/val"]),
        ("scenes", {"split": "dev"}, ["split is 'dev'", "test, val or ood"]),
        ("scenes", {"rule": "exact"}, ["rule is 'exact'", "leave it out"]),
        ("scenes", {"rule": "exakt"}, ["'exakt'", "Did you mean exact"]),
        ("scenes", {"n": 0}, ["n is 0", "1 or more"]),
        ("scenes", {"n": True}, ["n is True"]),
        ("scenes", {"n": 10**6}, ["1,000,000", "100,000"]),
        ("scenes", {"seed": -1}, ["seed is -1"]),
        ("scenes", {"split": 3}, ["split is 3"]),
        ("", {}, ["''"]),
        ("questions.json", {}, [".jsonl or .tsv"]),
        ("a\0b.tsv", {}, ["cannot be read"]),
        (".tsv/x.tsv", {}, ["cannot be read", "no folder"]),
    ],
)
def test_arguments_that_cannot_be(source, options, words):
    fails(source, *words, **options)


# --- files ---------------------------------------------------------------------------------------


def test_the_example_pictures(tmp_path):
    """The README's pictures, asked from a file elsewhere, with absolute paths."""
    asked = []
    for entry in tomllib.loads((PICTURES / "questions.toml").read_text("utf-8"))["picture"]:
        for question in entry["questions"]:
            asked.append(question | {"image": str(PICTURES / entry["image"])})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, asked)), "utf-8")
    data = load_data("q.jsonl", folder=tmp_path)
    assert [item.id for item in data.items] == [str(i + 1) for i in range(len(asked))]
    for item, one in zip(data.items, asked, strict=True):
        assert item.problem().images == (load_image(one["image"]),)
        assert item.question == one["question"] and item.answer == one["answer"]
        assert item.grade(f"The answer is {one['answer'].upper()}.") == 1.0
        assert item.grade("magenta") == 0.0 and item.facts("CAPTION", "A star.") is None


def test_a_jsonl_line_in_all_its_forms(jsonl, tmp_path):
    uri = f"data:image/png;base64,{RED}"
    data = load_data(
        jsonl(
            "\ufeff" + json.dumps(line(id="first", answer=["red", "crimson"], type="colour")),
            line(id=70, image=RED, answer=3, category="count"),
            "",
            line(images=["red.png", uri], image=None, answer=0.5, question="Zwei\u2028Zeilen?"),
            line(choices=["one", "two"], answer="B", hint="Look."),
            line(choices={"a": 1, "b": 2}, answer=2),
            {"question": "Is it?", "answer": "Yes", "choices": []},
            end="\r\n",
        )
    )
    first, second, third, fourth, fifth, last = data.items
    assert [item.id for item in data.items] == ["first", "70", "4", "5", "6", "7"]
    assert (first.answer, first.type) == ("red or crimson", "colour")
    assert first.grade("Crimson.") == second.grade("3.0") == third.grade("1/2") == 1.0
    assert len(third.problem().images) == 2 and len(set(third.problem().images)) == 1
    assert third.question == "Zwei\u2028Zeilen?"
    assert (fourth.answer, fifth.answer) == ("B", "B")
    assert fourth.question.splitlines() == [
        "Hint: Look.",
        "Question: What colour is it?",
        "Options:",
        "A. one",
        "B. two",
        "Choose one option and answer with its letter.",
    ]
    assert last.problem().images == () and "1 of 6 questions have no image." in data.notes
    assert first.problem().images == second.problem().images == (load_image(picture("red")),)


def test_tsv_rows(tsv):
    long = base64_of(picture("red") + b"\0" * 300_000)  # longer than a csv field may usually be
    data = load_data(
        tsv(
            cells("1", A="red", B="blue", answer="A", hint="Look.", category="colour"),
            cells("2", image="1", question='Is "it"\n\tred?', answer="yes"),
            cells("1000001", image="2", A="blue", B="red", answer="red"),
            cells("x", image=f"['{BLUE}', \"{RED}\"]"),
            cells("y", image="", image_path="red.png"),
            cells("z", image="", image_path="['red.png', 'red.png']"),
            cells("long", image=long),
        )
    )
    items = {item.id: item for item in data.items}
    assert items["1"].question.startswith("Hint: Look.\nQuestion: What?\nOptions:\nA. red\nB. blue")
    assert (items["1"].type, items["1"].answer, items["1000001"].answer) == ("colour", "A", "B")
    assert items["2"].question == 'Is "it"\n\tred?' and items["2"].grade("Yes, it is.") == 1.0
    red, blue = load_image(picture("red")), load_image(picture("blue"))
    for name in ("1", "2", "1000001", "y", "long"):
        assert items[name].problem().images == (red,)
    assert items["x"].problem().images == (blue, red)
    assert items["z"].problem().images == (red, red)
    for said in ("multiple choice", "yes/no", "exact match"):
        assert said in data.rule
    assert csv.field_size_limit() == 131_072


def test_tsv_with_bom_and_crlf(tmp_path):
    text = f"index\tquestion\tanswer\timage\r\n1\tWhat?\tred\t{RED}\r\n"
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_data("a.tsv", folder=tmp_path).items[0].problem().question == "What?"


LISTS = {  # a cell: its answers, of which any will do; one text where it is no list of texts
    "['2', 'two']": ("2", "two"),
    '["2", "two"]': ("2", "two"),
    "['2' 'two'\n 'deux']": ("2", "two", "deux"),  # numpy's, which Python would join
    " [ 'it\\'s', \"a 'b'\", 3.50, ] ": ("it's", "a 'b'", "3.50"),
    "['2', '2', ' two ', '']": ("2", "two"),
    '["\\ud83d\\ude00", "caf\\u00e9"]': ("😀", "café"),
    "['\\\\frac{1}{2}']": ("\\frac{1}{2}",),
    "[1, 2]": None,  # a vector
    "[0.5]": None,
    "['a', ['b']]": None,
    "[['a']]": None,
    "['a', None]": None,
    "['a''b']": None,
    "['a',, 'b']": None,
    "['a'": None,
    "['a'] and ['b']": None,
    "[a, b]": None,
    "('a', 'b')": None,
    "{'a': 1}": None,
    "['a', __import__('os')]": None,
    "[" + "['a']," * 50_000 + "]": None,
    "[" + "'a'," * 1001 + "]": None,
    "[" + "1" * 6000 + "]": None,
}


@pytest.mark.parametrize("cell", LISTS, ids=lambda cell: cell[:24])
def test_an_answer_that_is_written_as_a_list(tsv, jsonl, cell):
    """Any of the list's texts is right, in a TSV's cell and in a JSON text, as in a JSON list."""
    answers = LISTS[cell] or (cell.strip(),)
    files = [tsv(cells(answer=cell, image=RED)), jsonl(line(answer=cell))]
    for source in files:
        (item,) = (data := load_data(source)).items
        assert item.grader.accepted == (
            answers if source.endswith("tsv") or LISTS[cell] else (cell,)
        )
        assert item.answer == " or ".join(item.grader.accepted)
        for answer in LISTS[cell] or ():
            assert item.grade(f"The answer is {answer}.") == 1.0
        assert item.grade("none of them") == 0.0
        if LISTS[cell]:
            said = "1 of 1 standard answers are written as lists of texts: any of"
        else:
            said = "1 of 1 standard answers stand in brackets and are no list of texts (line"
        bracketed = cell.strip().startswith("[") and cell.strip().endswith("]")
        assert [note for note in data.notes if said in note] or not bracketed
    if LISTS[cell]:
        listed = load_data(jsonl(line(answer=list(answers)))).items[0]
        assert listed == item, "what a list means does not depend on how it is written"


def test_lists_of_options_and_lists_without_an_answer(tsv):
    (item,) = load_data(tsv(cells(answer="['A', 'blue']", A="red", B="blue", C="green"))).items
    assert (item.grader.kind, item.grader.accepted) == ("choice", ("A", "B"))
    assert [item.grade(letter) for letter in "ABC"] == [1.0, 1.0, 0.0]
    for cell in ("[]", "['']", "[' ', '']"):
        fails(tsv(cells(answer=cell)), "line 2", "no answer")


def test_what_was_no_list_keeps_its_digest(tsv, jsonl):
    """Stores are named by it."""
    plain, vector, given = (
        load_data(tsv(cells(answer="red"))).items[0],
        load_data(tsv(cells(answer="[1, 2]"))).items[0],
        load_data(jsonl(line(id="1", answer=["red", "crimson"]))).items[0],
    )
    assert [item.digest[:12] for item in (plain, vector, given)] == DIGESTS


DIGESTS = ["27d67c8be639", "f04fa5074a0f", "b3e81a43b0c6"]  # of 15a5481


def test_a_path_is_as_good_as_its_name(tsv):
    source = tsv(cells())
    assert load_data(Path(source)) == load_data(source)
    assert load_data(Path(source).name, folder=str(Path(source).parent)) == load_data(source)
    assert load_data(Path("scenes"), n=2) == load_data("scenes", n=2)
    for none in (None, 3, "", b"x", [source]):
        with pytest.raises(ConfigError, match="The data source is"):
            load_data(none)


HEAD = "index\tquestion\tanswer\timage\n"
LINE = f"1\tWhat?\tred\t{RED}\n"
NEXT = LINE.replace("1", "2", 1)
NOISE = base64_of(random.Random(0).randbytes(200_000))  # longer than the interpreter's field limit
ODD = {  # a TSV file's text: the ids that are read, or what is said of it
    "CRLF": ((HEAD + LINE + NEXT).replace("\n", "\r\n"), ["1", "2"]),
    "CR": ((HEAD + LINE + NEXT).replace("\n", "\r"), ["1", "2"]),
    "mixed": (HEAD.replace("\n", "\r\n") + LINE + NEXT, ["1", "2"]),
    "no end": ((HEAD + LINE).rstrip(), ["1"]),
    "two BOMs": ("\ufeff\ufeff" + HEAD + LINE, ["1"]),
    "blank lines": (HEAD + "\n \n\t\t\t\n" + LINE + " \t\n\n" + NEXT, ["1", "2"]),
    "spaces about names": (HEAD.replace("question", " question ") + LINE, ["1"]),
    "nameless columns": ((HEAD + LINE).replace("\n", "\t\t\n"), ["1"]),
    "a field of several lines": (HEAD + LINE.replace("What?", '"Wh\nat\t""it"""'), ["1"]),
    "a quote amid": (HEAD + LINE.replace("What", 'Wh"at'), ["1"]),
    "a long field": (HEAD + LINE.replace(RED, NOISE), ["1"]),
    "a long field, quoted": (HEAD + LINE.replace(RED, f'"{NOISE}"'), ["1"]),
    "U+2028": (HEAD + LINE.replace("What", "Wh\u2028at"), ["1"]),
    "UTF-16": ((HEAD + LINE).encode("utf-16"), "not UTF-16"),
    "UTF-16 without a BOM": ((HEAD + LINE).encode("utf-16-be"), "not UTF-16"),
    "Latin-1": ((HEAD + LINE.replace("a", "\xe9")).encode("latin-1"), "line 2: the byte 0xe9"),
    "NUL": (HEAD + LINE.replace("red", "r\0d"), "line 2: answer holds a NUL character"),
    "open quote": (HEAD + LINE.replace("What", '"What') + NEXT, "line 2: this is not TSV"),
    "text after a quote": (HEAD + LINE.replace("What", '"What" is'), "nothing after this line"),
    "too few": (HEAD + LINE + "2\tWhat?\n", "line 3: there are 2 fields, but 4 columns: none for"),
    "which are missing": (HEAD + "2\tWhat?\n", "none for answer, image"),
    "too many": (HEAD + LINE.replace("red", "red\tblue"), "there are 5 fields, but 4 columns."),
    "columns again": (HEAD + LINE + HEAD + NEXT, "line 3: this is the line of columns again"),
    "capitals": (HEAD.replace("q", "Q") + LINE, "Is 'Question' the column question?"),
    "another name": (HEAD.replace("answer", "answers") + LINE, "Is 'answers' the column answer?"),
    "a column twice": (HEAD.replace("answer", "image") + LINE, "no column answer"),
    "twice": (HEAD.replace("\n", "\timage\n") + LINE, "the column image is there twice"),
    "commas": ((HEAD + LINE).replace("\t", ","), "separated by tabs: these are commas"),
    "semicolons": ((HEAD + LINE).replace("\t", ";"), "these are semicolons"),
    "ids": (HEAD + LINE + LINE, "same id: '1' (line 2, line 3)"),
    "no id": (HEAD + LINE.replace("1", " ", 1), "line 2: there is no index"),
    "a long id": (
        HEAD + LINE.replace("1", "i" * 9999, 1),
        "its id has 9,999 characters; the limit",
    ),
    "no rows": (HEAD, "holds no questions"),
    "a URL": (f"{HEAD[:-1]}_path\n1\tx\ty\thttp://a.org/b.png\n", "line 2: The image 'http://a"),
    "many fields": (HEAD + "x\t" * 50_000 + "\n", "there are 50001 fields"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_tsv_files_are_read_or_named_by_line_and_column(tmp_path, case):
    text, wanted = ODD[case]
    path = tmp_path / "data.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if isinstance(wanted, list):
        assert [item.id for item in load_data(path).items] == wanted
        return
    with pytest.raises((InputError, ImageError)) as caught:
        load_data(path)
    assert wanted in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\ufeff", "\n \n"])
def test_jsonl_with_any_line_ends(jsonl, end):
    source = jsonl(line(id="a"), line(id="b", question="W\u2028?"), end=end)
    assert [item.id for item in load_data(source).items] == ["a", "b"]


def test_no_text_of_a_json_line_holds_a_nul_or_a_book(jsonl):
    fails(jsonl(line(question="What\0?")), "line 1", "question holds a NUL")
    fails(jsonl(line(id="i" * 5000)), "line 1", "its id has 5,000 characters; the limit is 1,000")


def test_a_part_of_the_data(tsv, tmp_path):
    rows = [cells(str(i), split="dev" if i % 2 else "test") for i in range(6)]
    path = tsv(*rows)
    every = load_data(path)
    assert load_data(path, n=6).notes == every.notes == ()
    few, many = load_data(path, n=2), load_data(path, n=60)
    assert [item.id for item in few.items] == ["0", "1"] and "first 2 of the 6" in few.notes[0]
    assert "has 6 questions" in many.notes[0] and many.items == every.items
    assert few == every.take(2) and many == every.take(60) and every.take(None) == every
    dev = load_data(path, split="dev")
    assert [item.id for item in dev.items] == ["1", "3", "5"] and dev.name == "data.tsv/dev"
    fails(path, "'val'", "dev", "test", split="val")
    fails(tsv(cells()), "split is 'dev'", "Leave it out", split="dev")
    with pytest.raises(ConfigError):
        every.take(-1)


def test_a_picture_of_a_row_that_is_not_taken_counts(tsv):
    path = tsv(cells("1", image="3"), cells("2", image_path="gone.png", image=""), cells("3"))
    assert load_data(path, n=1).items[0].problem().images == (load_image(picture("red")),)
    fails(path, "gone.png", error=ImageError)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{}"], ["line 1", "no question"]),
        ([line(), '{"question": "x", '], ["line 2", "not JSON"]),
        ([line(), "[1]"], ["line 2", "a list", "JSON object"]),
        (["[" * 100_000], ["line 1", "not JSON"]),
        ([line(question=None)], ["line 1", "no question"]),
        ([line(question="  ")], ["line 1", "question is"]),
        ([line(question="x" * 20_001)], ["line 1", "20,001", "20,000"]),
        ([line(question="\ud800")], ["line 1", "surrogate"]),
        ([line(answer=""), line()], ["line 1", "no answer"]),
        ([line(answer=[])], ["no answer"]),
        ([line(answer=True)], ["answer is true", '"yes" or "no"']),
        ([line(answer=float("nan"))], ["NaN is no number"]),
        ([line(answer={"a": 1})], ["answer is"]),
        ([{"question": "x", "anwser": "y"}], ["no answer", "'anwser'"]),
        ([line(id=[1])], ["id is [1]"]),
        ([line(type="a", category="b")], ["type and a category"]),
        ([line(choices=["one"], answer="A")], ["choices is ['one']", "2 to 26"]),
        ([line(choices=["x"] * 27, answer="A")], ["choices is", "2 to 26"]),
        ([line(choices={"A": "x", "a": "y"}, answer="A")], ["a letter twice"]),
        ([line(choices={"A": "x", "10": "y"}, answer="A")], ["'10'", "A to Z"]),
        ([line(choices=["x", ""], answer="A")], ["choice B"]),
        ([line(choices=["x", "y"], answer="E")], ["line 1", "'E'", "A, B"]),
        ([line(choices=["x", "x"], answer="x")], ["'x'", "just one"]),
        ([line(id="a"), line(id="b"), line(id="a")], ["'a' (line 1, line 3)", "same id"]),
        ([line(), line(id=1)], ["'1' (line 1, line 2)"]),
        ([line(image=3)], ["an image is 3"]),
        ([line(image="")], ["an image is"]),
        ([line(images=["red.png"])], ["an image and images"]),
        ([line(image="http://127.0.0.1:9/a.png")], ["line 1", "127.0.0.1"]),
        ([line(image="file:///etc/passwd")], ["line 1", "'file'"]),
        ([line(image="data:image/png,abc")], ["line 1", ";base64"]),
        ([line(image="data:image/png;base64,")], ["line 1", "empty"]),
        ([line(image=RED[:-3] + "*!?")], ["line 1", "no readable base64"]),
        ([line(image=RED + "A")], ["line 1", "base64"]),
        ([line(image="!" * 5000)], ["line 1", "base64", "5,000 characters"]),
        ([line(image="a\0b.png")], ["line 1"]),
        ([line(image="..")], ["line 1", "not a regular file"]),
        ([line(image="data.jsonl"), line(image="empty.png")], ["line 2", "empty (0 bytes)"]),
        ([""], ["no questions"]),
    ],
)
def test_a_jsonl_file_that_is_wrong(jsonl, tmp_path, lines, words):
    (tmp_path / "empty.png").touch()
    fails(jsonl(*lines), *words)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"index": 1, "question": "x", "image": RED}], ["line 1", "no column answer"]),
        ([{"a": 1, "b": 2}], ["no column index", "a, b", "index, question, answer"]),
        ([{"index": 1, "question": "x", "answer": "y"}], ["no column image", "image_path"]),
        ([cells(question="")], ["line 2", "no question"]),
        ([cells(), cells("2", answer="")], ["line 3", "no answer", "Test splits"]),
        ([cells(""), cells("2")], ["line 2", "no index"]),
        ([cells("5"), cells("6", question="a\nb"), cells("5")], ["'5' (line 2, line 5)"]),
        ([cells(A="x")], ["line 2", "only one option"]),
        ([cells(A="x", B="y", answer="C")], ["line 2", "'C'", "A, B"]),
        ([cells(image="2")], ["line 2", "'2'", "no row's index"]),
        ([cells(image="foo.png")], ["'foo.png'", "image_path"]),
        ([cells(image="[foo]")], ["'[foo]'"]),
        ([cells("1", image="1")], ["circle", "1 -> 1"]),
        (
            [cells("1", image="2"), cells("2", image="3"), cells("3", image="2")],
            ["line 2", "circle", "1 -> 2 -> 3 -> 2"],
        ),
        ([cells("1", image="2"), cells("2", image="")], ["row '2'", "has none"]),
        ([cells("1", image="2"), cells("2", image="['1', '2']")], ["names other rows itself"]),
        ([cells(image="A" * 65)], ["line 2", "base64"]),
        ([cells(image="-" * 100)], ["line 2", "base64"]),
        ([cells(image="", image_path="gone.png")], ["'gone.png' (line 2)", "1 image"]),
    ],
)
def test_a_tsv_file_that_is_wrong(tsv, rows, words):
    fails(tsv(*rows), *words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", ["no questions"]),
        ("a.tsv", b"\xef\xbb\xbf\r\n", ["no questions"]),
        ("a.tsv", b"index\tquestion\tanswer\timage\n", ["no questions"]),
        ("a.jsonl", b"{}\n{\xff}", ["line 2", "0xff", "UTF-8"]),
        ("a.tsv", "index\n".encode("utf-16"), ["not UTF-16", "UTF-8"]),
        ("a.tsv", b"index\tquestion\tanswer\timage\n1\tx\ty\n", ["line 2", "3 fields", "4"]),
        ("a.tsv", b'index\tquestion\tanswer\timage\n1\t"x\ty\tz\n2\tx', ["line 2", "not TSV"]),
        ("a.tsv", b"index\tindex\tquestion\tanswer\timage\n", ["twice"]),
    ],
)
def test_a_file_that_is_no_such_file(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    fails(name, *words, folder=tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "data.jsonl").write_text("{}")
    (tmp_path / "folder.tsv").mkdir()
    fails("dats.jsonl", "No such file", "data.jsonl", folder=tmp_path)
    fails("gone/data.jsonl", "no folder", folder=tmp_path)
    fails("folder.tsv", "it is a folder", folder=tmp_path)


def test_missing_pictures_are_counted_and_the_first_named(jsonl):
    path = jsonl(line(), *[line(image=f"{i}.png") for i in (1, 2, 2, 3, 4, 5)])
    words = ["5 images", "'1.png' (line 2), '2.png' (line 3), '3.png' (line 5) and 2 more"]
    fails(path, *words, "relative to", error=ImageError)


def test_a_picture_that_cannot_be_decoded_names_its_question(jsonl, tmp_path):
    (tmp_path / "web.png").write_text("<!doctype html>")
    path = jsonl(line(id="q", image="web.png"), line(id="p"), line(id="b", image="A" * 64))
    first, second, third = load_data(path).items
    for item, said in ((first, "a web page"), (third, "no known image format")):
        with pytest.raises(ImageError, match=f"'{item.id}'.*{said}"):
            item.problem()
    (tmp_path / "red.png").write_bytes(picture("blue"))
    with pytest.raises(ImageError, match=r"'p'.*red\.png.*has changed since"):
        second.problem()
    (tmp_path / "red.png").unlink()
    with pytest.raises(ImageError, match=r"'p'.*red\.png.*does not exist"):
        second.problem()


def test_a_url_only_where_allowed(jsonl, monkeypatch):
    path = jsonl(line(image="https://example.org/a.png"))
    fails(path, "line 1", "example.org", error=ImageError)
    asked = []

    def download(url, scheme, allowed):
        asked.append((url, scheme, allowed))
        return picture("blue"), url

    monkeypatch.setattr("cot_engine.questions.pictures.download", download)
    (item,) = load_data(path, allow_url=True).items
    assert item.problem().images == (load_image(picture("blue")),)
    assert asked == [("https://example.org/a.png", "https", True)]


GOOD = {
    ".jsonl": (json.dumps(line(image=RED, choices=["a", "b"], answer="B")) + "\n").encode() * 2,
    ".tsv": f'index\tquestion\tanswer\timage\n1\t"a\nb"\tred\t{RED}\n2\tx\tno\t1\n'.encode(),
}


@given(
    st.sampled_from(sorted(GOOD)),
    st.integers(0, 400),
    st.integers(0, 40),
    st.one_of(st.binary(max_size=8), st.text('"\\\t\r\n{}[],:019.eE\0 ', max_size=8)),
)
def test_no_damage_to_a_file_makes_a_traceback(suffix, at, cut, inserted):
    inserted = inserted if isinstance(inserted, bytes) else inserted.encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"d{suffix}")
        path.write_bytes(GOOD[suffix][:at] + inserted + GOOD[suffix][at + cut :])
        try:
            data = load_data(str(path))
        except InputError as error:
            assert str(path) in error.message and error.hint
        else:
            assert data.items and data.rule and len(data.digest) == 64


# --- values --------------------------------------------------------------------------------------


def test_items_travel(jsonl):
    path = jsonl(line(), line(image=RED, choices=["a", "b"], answer="A"))
    for data in (load_data(path), load_data("scenes", n=2)):
        for item in data.items:
            copy = pickle.loads(pickle.dumps(item))
            assert copy == item and hash(copy) == hash(item) and copy.problem() == item.problem()
            assert copy.grade("A") == item.grade("A") and copy.facts("CAPTION", "x") in (None, 0.0)
        assert pickle.loads(pickle.dumps(data)) == data


def test_ten_thousand_items_are_cheap(tmp_path):
    """No picture is decoded or drawn, and one that many ask about is read once."""
    (tmp_path / "red.png").write_bytes(picture("red") + b"\0" * 100_000)
    asked = "\n".join(json.dumps(line(id=i)) for i in range(10_000))
    (tmp_path / "a.jsonl").write_text(asked, "utf-8")
    data = load_data("a.jsonl", folder=tmp_path)
    assert len({item.digest for item in data.items}) == 10_000
    assert len({id(item.pictures[0]) for item in data.items}) == 1
    assert len(pickle.dumps(data.items[0])) < 1000


def test_the_digest_is_of_content_not_of_places(tmp_path):
    digests = set()
    for name, image in (("a", "red.png"), ("b", "other.png"), ("c", RED)):
        (tmp_path / name).mkdir()
        (tmp_path / name / image[:9]).write_bytes(picture("red"))
        (tmp_path / name / "d.jsonl").write_text(json.dumps(line(image=image)))
        digests.add(load_data("d.jsonl", folder=tmp_path / name).digest)
    assert len(digests) == 1
    (tmp_path / "a" / "red.png").write_bytes(picture("blue"))
    assert load_data("d.jsonl", folder=tmp_path / "a").digest not in digests


WORDS = st.text(string.ascii_letters + "äß漢 \"',", min_size=1, max_size=6).filter(
    lambda text: text.strip()
)
LINES = st.fixed_dictionaries(
    {
        "id": WORDS.map(str.strip),
        "question": WORDS,
        "answer": st.sampled_from(["A", "B"]),
        "image": st.sampled_from([RED, BLUE]),
    },
    optional={
        "choices": st.lists(WORDS, min_size=2, max_size=3),
        "type": WORDS,
        "hint": WORDS,
    },
)


def loaded(*objects, rule=None) -> DataSet:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "d.jsonl").write_text("\n".join(map(json.dumps, objects)), "utf-8")
        return load_data("d.jsonl", folder=Path(folder), rule=rule)


@given(LINES, LINES, st.sampled_from([None, *(r for r in RULES if r != "choice")]))
def test_equal_questions_have_equal_digests(first, second, rule):
    one, two = loaded(first, rule=rule), loaded(second, rule=rule)
    assert (one.digest == two.digest) == (one.items == two.items)
    a, b = one.items[0], two.items[0]

    def content(item):
        images = [image.digest for image in item.problem().images]
        return item.id, item.question, item.answer, item.type, images, item.grader

    assert (a.digest == b.digest) == (content(a) == content(b))
    assert a.digest == loaded(dict(reversed(first.items())), rule=rule).items[0].digest
    assert len(a.digest) == 64 and int(a.digest, 16) >= 0


@given(LINES, st.sampled_from(["id", "question", "answer", "image", "type"]))
def test_any_change_makes_another_digest(one, key):
    other = dict(one) | {key: one.get(key, "") + "x"}
    if key in ("answer", "image"):
        other[key] = {"A": "B", "B": "A", RED: BLUE, BLUE: RED}[one[key]]
    before, after = loaded(one), loaded(other)
    assert before.items[0].digest != after.items[0].digest and before.digest != after.digest
    rest = one | {"id": one["id"] + "y"}
    assert loaded(one, rest).digest != loaded(rest, one).digest


# --- grading of what is loaded -------------------------------------------------------------------


def test_how_auto_picks_and_what_a_rule_forces(jsonl):
    lines = [
        line(choices=["red", "blue"], answer="A"),
        line(answer="Yes"),
        line(answer="3"),
        line(answer="red<OR>crimson"),
    ]

    def kinds(objects, rule=None):
        return [item.grader.kind for item in load_data(jsonl(*objects), rule=rule).items]

    assert kinds(lines[:3]) == kinds(lines[:3], "auto") == ["choice", "yes/no", "exact"]
    assert kinds(lines) == ["choice", "yes/no", "contains", "contains"]
    assert kinds(lines, "exact") == ["exact"] * 4
    assert kinds(lines, "relaxed") == ["choice", *["relaxed"] * 3]
    assert kinds(lines, "contains") == ["choice", *["contains"] * 3]
    fails(jsonl(*lines), "rule is 'choice'", "line 2", "'2'", rule="choice", error=ConfigError)
    fails(jsonl(*lines), "'strict'", "auto", rule="strict")
    item = load_data(jsonl(lines[0]), rule="exact").items[0]
    assert [item.grade(x) for x in ("a", "A. red", "Red", "B", "It is A", "red or blue")] == [
        *[1, 1, 1, 0, 0, 0]
    ]
    assert item.digest != load_data(jsonl(lines[0])).items[0].digest


def test_answers_that_nothing_can_contain_are_counted(jsonl):
    long = line(answer="word " * 11)
    notes = load_data(jsonl(line(answer="a<OR>b"), long)).notes
    assert any("1 of 2 standard answers are longer than 10 words" in note for note in notes)
