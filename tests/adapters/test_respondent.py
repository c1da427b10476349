"""What the adapters share, without any harness."""

from __future__ import annotations

import base64
import importlib.util
import subprocess
import sys

import PIL.Image
import pytest
import scripted_cli

from cot_engine.benchmarks.adapters.respondent import (
    NO_CONCLUSION,
    Picture,
    Respondent,
    picture_of,
    question_of,
)
from cot_engine.errors import ConfigError, CotEngineError, ImageError, InputError

A, B = Picture("a.png"), Picture("b.png")


@pytest.mark.parametrize(
    ("parts", "pictures", "text"),
    [
        (["How many?"], [], "How many?"),
        ([A, "How many?"], ["a.png"], "How many?"),
        (["How many?", A], ["a.png"], "How many?"),  # one place for pictures: it needs no mark
        ([A, B, "Which?", "A or B"], ["a.png", "b.png"], "Which?\nA or B"),
        (["First", A, "then", B, "?"], ["a.png", "b.png"], "First\n<image 1>\nthen\n<image 2>\n?"),
        ([B, "or", A], ["b.png", "a.png"], "<image 1>\nor\n<image 2>"),
        ([A, "", B, " x "], ["a.png", "b.png"], " x "),  # as it came, but for what is nothing
    ],
)
def test_a_message_is_a_question_behind_its_pictures(parts, pictures, text):
    assert question_of([("user", parts)]) == (pictures, text)


def test_earlier_turns_are_text_before_the_question():
    turns = [("system", ["Be short."]), ("user", [A, "What?"]), ("assistant", ["A dog."])]
    pictures, text = question_of([*turns, ("user", [B, "And here?"])])
    assert pictures == ["a.png", "b.png"]
    assert text == (
        "Be short.\n\nEarlier in this conversation:\nUser: <image 1>\nWhat?\nAssistant: A dog.\n\n"
        "<image 2>\nAnd here?"
    )
    with pytest.raises(InputError, match="must be the user's"):
        question_of(turns)
    with pytest.raises(InputError, match="no tools"):
        question_of([("tool", ["3"]), ("user", ["And?"])])


def test_a_picture_is_read_from_where_harnesses_put_it():
    data = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
    assert picture_of(data) == Picture(b"\x89PNG")
    assert picture_of("here/a.png") == Picture("here/a.png")
    with pytest.raises(ImageError, match="not base64"):
        picture_of("data:image/png;base64,a")


@pytest.fixture
def respondent(monkeypatch, tmp_path):
    monkeypatch.setattr("cot_engine.engine.facade.Engine.from_pretrained", scripted_cli.load)
    made = Respondent({"strategy": "best-of-n", "n": 2, "seed": 3, "traces": tmp_path / "traces"})
    yield made
    made.close()


def test_answers_keep_their_places_among_those_that_fail(respondent, tmp_path):
    picture = PIL.Image.new("RGB", (32, 16), "red")
    bad = InputError("It has a part of the type video.")
    replies = list(
        respondent.ask_all(
            [bad, ([picture], "First?"), (["absent.png"], "Second?"), ([], "Third?"), bad]
        )
    )
    assert [bool(reply.error) for reply in replies] == [True, False, True, False, True]
    assert "absent.png" in replies[2].columns["error"] and "video" in replies[4].error
    assert list(replies[1].columns["stages"]) == ["SUMMARY", "CAPTION", "REASONING", "CONCLUSION"]
    assert list(replies[3].columns["stages"]) == ["SUMMARY", "REASONING", "CONCLUSION"]
    assert replies[1].text == replies[1].columns["stages"]["CONCLUSION"]
    one = respondent.ask([picture], "First?")
    assert one.columns["trace"] == replies[1].columns["trace"] and one.columns["seed"] == 3
    again = respondent.ask([picture], "First?", seed=4)
    assert again.columns["trace"] != one.columns["trace"]
    assert len(list((tmp_path / "traces").iterdir())) == 3
    assert one.columns["new_tokens"] == one.answer.total.decoded > 0


def test_no_conclusion_is_named_and_not_an_empty_answer(respondent):
    answer = respondent.ask([], "Why?").answer
    object.__setattr__(answer, "text", " ")
    assert respondent._reply(answer).error == NO_CONCLUSION


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"modle": "x"}, "modle.*Options of the engine are.* model,"),
        ({"strategy": "stage-bean"}, "stage-beam"),
        ({"n": 0}, "from 1 to 1024"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"traces": " "}, "traces is ' '"),
        ({"parameters": "n=4"}, "Give names with values"),
    ],
)
def test_what_will_not_do_is_said_before_anything_is_asked(given, said, monkeypatch):
    monkeypatch.setattr("cot_engine.engine.facade.Engine.from_pretrained", scripted_cli.load)
    with pytest.raises(ConfigError if "strategy" not in given else CotEngineError, match=said):
        Respondent(given)


@pytest.mark.parametrize(
    ("module", "package", "command"),
    [
        ("lmms_eval", "lmms_eval", "pip install lmms-eval"),
        ("vlmevalkit", "vlmeval", "pip install ms-vlmeval"),
    ],
)
def test_a_missing_harness_is_an_error_with_its_command(module, package, command):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(CotEngineError, match=f"cannot be imported.*{command}"):
        importlib.import_module(f"cot_engine.benchmarks.adapters.{module}")


def test_what_starts_vlmevalkit_says_so_in_a_sentence():
    if importlib.util.find_spec("vlmeval"):
        pytest.skip("vlmeval is installed")
    start = [sys.executable, "-m", "cot_engine.benchmarks.adapters", "vlmevalkit"]
    done = subprocess.run(start, capture_output=True, text=True, timeout=120)
    assert done.returncode and done.stderr.startswith("cot-engine: VLMEvalKit cannot be imported")
    assert len(done.stderr.splitlines()) == 1
