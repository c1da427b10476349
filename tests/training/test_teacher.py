"""The teacher's client, against a real server process, and the journal on a real disk."""

import asyncio
import json
import sqlite3
import subprocess
import sys
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from teacher_process import serving

from cot_engine.errors import ConfigError, InputError, StoreError
from cot_engine.training import teacher as module
from cot_engine.training.build import unusable
from cot_engine.training.journal import Journal
from cot_engine.training.teacher import (
    Pace,
    Rejected,
    Stopped,
    Teacher,
    TeacherError,
    Unanswered,
    check_base_url,
    is_exposed,
    read_reply,
)

RECIPE = {"model": "teacher"}


def ask(server, *rows, model="teacher", said=None, **how):
    """The texts of the replies about these rows, all asked at once; or what was raised."""

    async def run():
        tell = said.append if said is not None else (lambda text: None)
        url = how.pop("url", None) or server.url
        teacher = Teacher(url, tell=tell, **{"pace": Pace(how.pop("rpm", None)), **how})

        async def one(row):
            messages = [{"role": "user", "content": f"row {row}: ?\n\nThe note: 5"}]
            body = await teacher.ask(model, messages, seed=int(row), temperature=0.7, tokens=99)
            return read_reply(body)

        async with teacher:
            return await asyncio.gather(*map(one, rows), return_exceptions=True)

    return asyncio.run(run())


# --- what a server may do ------------------------------------------------------------------------


def test_calls_overlap(tmp_path):
    """The server answers nobody before four have come: one at a time would never be answered."""
    with serving(tmp_path, barrier=4) as server:
        replies = ask(server, *range(8), in_flight=4)
        assert all("<CONCLUSION>5</CONCLUSION>" in reply.text for reply in replies)
        assert max(entry["open"] for entry in server.log) == 4


def test_what_passes_by_itself_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.02)
    first = {"1": ["500", "503:0.1"], "2": ["drop"], "3": ["hang:2"], "4": ["429:0.1"]}
    with serving(tmp_path, first=first) as server:
        said = []
        replies = ask(server, 1, 2, 3, 4, said=said, timeout=0.5)
        assert all(reply.text.endswith("<CONCLUSION>5</CONCLUSION>") for reply in replies)
        assert server.paid() == {("write", seed): 1 for seed in (1, 2, 3, 4)}
    said = " ".join(said)
    for word in ("HTTP 500", "HTTP 503", "HTTP 429", "connection broke", "no answer in 0.5 s"):
        assert word in said


def test_all_wait_where_one_is_told_to(tmp_path):
    """While it has us wait, the server sees those who were on their way, and nobody else."""
    with serving(tmp_path, first={"5": ["429:1.5"]}, delay=0.01) as server:
        replies = ask(server, *range(40), in_flight=4)
        assert all(reply.text for reply in replies)
        log = server.log
    at = next(k for k, entry in enumerate(log) if entry.get("action") == "429:1.5")
    early = [e for e in log[at + 1 :] if e["came"] < log[at]["came"] + 1.5]
    assert len(early) <= 3 and len(log) == 41


def test_calls_are_spaced(tmp_path):
    """The k-th call cannot have come before k intervals had passed, however slow the machine."""
    with serving(tmp_path) as server:
        begun = time.monotonic()  # the same clock in all processes of one machine
        ask(server, *range(6), rpm=300)
        for k, came in enumerate(sorted(entry["came"] for entry in server.log)):
            assert came - begun >= k * 0.2


def test_it_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    with serving(tmp_path, first={"1": ["500"] * 9}) as server:
        one, two = ask(server, 1, 2, retries=2)
        assert isinstance(one, Unanswered) and "HTTP 500" in str(one) and "3 times" in str(one)
        assert two.text
        assert [e["row"] for e in server.log].count("1") == 3


@pytest.mark.parametrize("date", [False, True])
def test_a_server_that_asks_to_wait_for_hours_ends_the_run(tmp_path, date):
    wait = formatdate(time.time() + 7200, usegmt=True) if date else "7200"
    with serving(tmp_path, first={"1": [f"429:{wait}"]}) as server:
        (error,) = ask(server, 1)
    assert isinstance(error, TeacherError) and "asks to wait 7," in error.message


@pytest.mark.parametrize(
    ("script", "how", "kind", "words"),
    [
        ({"key": "k"}, {}, TeacherError, ["HTTP 401", "No key was sent"]),
        ({"key": "k"}, {"key": "sk-wrong"}, TeacherError, ["HTTP 401", "not accepted", "***"]),
        ({"models": ["teacher-large"]}, {}, TeacherError, ["no model 'teacher'", "teacher-large"]),
        ({"first": {"1": ["quota"]}}, {}, TeacherError, ["quota is used up"]),
        ({"first": {"1": ["400"]}}, {}, Rejected, ["HTTP 400"]),
        ({"first": {"1": ["413"]}}, {}, Rejected, ["HTTP 413"]),
        ({"first": {"1": ["302"]}}, {}, TeacherError, ["redirects"]),
    ],
)
def test_what_would_not_pass_is_not_tried_again(tmp_path, script, how, kind, words):
    with serving(tmp_path, **script) as server:
        (error,) = ask(server, 1, **how)
        assert isinstance(error, kind) and all(word in str(error) for word in words)
        assert "sk-wrong" not in f"{error} {error!r} {getattr(error, 'hint', '')}"
        assert len(server.log) == 1


def test_no_server():
    (error,) = ask(None, 1, url="http://127.0.0.1:9/v1")
    assert isinstance(error, TeacherError) and "No teacher answers" in error.message


def test_options_that_a_server_does_not_know_are_left_out(tmp_path):
    with serving(tmp_path, unknown=["seed", "temperature", "max_tokens"]) as server:
        said = []
        replies = ask(server, 1, 2, said=said, in_flight=1)
        assert all(reply.text for reply in replies)
        assert [(e["seed"], e["temperature"]) for e in server.log if e["paid"]] == [
            (None, None)
        ] * 2
        assert len(server.log) <= 3 + 3 + 2 and len(said) == 3


def test_a_stop_ends_the_waiting():
    async def run():
        pace = Pace()
        await pace.pause(1000)
        asyncio.get_running_loop().call_later(0.05, pace.stop.set)
        with pytest.raises(Stopped):
            await pace.turn()

    asyncio.run(asyncio.wait_for(run(), 60))


# --- addresses and keys --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://a/v1", "http://", "http://a:99999/v1", "http://a/v1?k=1"]
)
def test_what_is_no_address(url):
    with pytest.raises(ConfigError, match="base-url is"):
        check_base_url(url)


def test_addresses():
    for url in ("http://a/v1", "http://a/v1/", "http://a/v1/chat/completions"):
        assert check_base_url(url) == "http://a/v1"
    with pytest.raises(ConfigError) as caught:
        check_base_url("http://me:secret@a/v1")
    assert "secret" not in str(caught.value)
    assert is_exposed("http://example.org/v1") and not is_exposed("https://example.org/v1")
    assert not is_exposed("http://127.0.0.1:8000/v1")


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
def test_a_key_that_is_none_is_not_shown(key):
    with pytest.raises(ConfigError) as caught:
        Teacher("http://a/v1", key)
    assert key not in str(caught.value) and key not in repr(caught.value)
    assert "sk-1" not in repr(Teacher("http://a/v1", "sk-1", Pace()))


# --- replies -------------------------------------------------------------------------------------


def body(**message):
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})


def test_replies_in_their_many_forms():
    assert read_reply(body(content=" hi ")).text == "hi"
    assert read_reply(body(content=[{"type": "text", "text": "a"}, {"text": "b"}])).text == "ab"
    assert read_reply(body(content="<think>\nyes or no?</think>\nyes")).text == "yes"
    assert read_reply(body(content="\ud800x")).text == "?x"
    for garbage in ("", "{", "[]", "null", '"x"', '{"choices": [3]}', body(content=7), "[" * 9999):
        reply = read_reply(garbage)
        assert reply.garbage and unusable(reply).reason == "garbage"


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x)))
def test_nothing_in_a_reply_is_an_error(value):
    for found in (
        value,
        {"choices": value, "usage": value},
        {"choices": [{"message": value}], "usage": {"prompt_tokens": value}},
        {"choices": [{"message": {"content": value, "refusal": value}, "finish_reason": value}]},
    ):
        reply = read_reply(json.dumps(found))
        assert isinstance(reply.text, str) and isinstance(reply.refusal, str)
        reply.text.encode()
        unusable(reply)


def test_what_is_a_refusal_and_what_only_looks_like_one():
    def reason(text, finish="stop"):
        choice = {"message": {"content": text}, "finish_reason": finish}
        fault = unusable(read_reply(json.dumps({"choices": [choice]})))
        return fault and fault.reason

    assert reason("I’m sorry, I can't assist with that.") == "refused"
    assert reason("I cannot help with this request.") == "refused"
    assert reason("As an AI, I have no opinion.") == "refused"
    assert reason("", "content_filter") == "refused"
    assert reason("") == "empty" and reason("", "length") == "length"
    assert reason("<SUMMARY>I can", "length") == "length"
    assert reason("<SUMMARY>I cannot see the back, but ...</SUMMARY>") is None
    assert reason("Sorry signs hang in the window.") is None


# --- the journal ---------------------------------------------------------------------------------


def test_a_journal_of_nothing_goes_and_one_that_was_paid_for_is_one_file(tmp_path):
    path = tmp_path / "j.sqlite"
    Journal(path, RECIPE).close()
    assert [*tmp_path.iterdir()] == []
    with Journal(path, RECIPE) as journal:
        journal.add("t", 0, "write", "m", body(content="hi"))
    assert [*tmp_path.iterdir()] == [path]


def test_what_is_in_the_journal_stays(tmp_path):
    path = tmp_path / "deep" / "j.sqlite"
    with Journal(path, RECIPE) as journal:
        assert journal.get("t", 0, "write", "m") is None
        journal.add("t", 0, "write", "m", body(content="hi"))
        with pytest.raises(StoreError):  # nothing is paid for twice, whatever went wrong
            journal.add("t", 0, "write", "m", body(content="other"))
    with Journal(path, RECIPE) as journal:
        assert journal.get("t", 0, "write", "m").text == "hi"
        assert journal.get("t", 1, "write", "m") is None
        assert journal.total.calls == journal.spent["write"].uncounted == 1


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "j.sqlite"
    code = (
        "import sys; from cot_engine.training.journal import Journal\n"
        f"with Journal(sys.argv[1], {RECIPE}): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(
            StoreError, match=f"Process {process.pid} on .* is writing to the journal"
        ):
            Journal(path, RECIPE)
        process.kill()
    with Journal(path, RECIPE) as journal:  # the system let go of it
        assert journal.total.calls == 0


def test_another_recipe_is_not_mixed_in(tmp_path):
    with Journal(tmp_path / "j.sqlite", RECIPE) as journal:
        journal.add("t", 0, "write", "m", body(content="hi"))
    with pytest.raises(InputError, match=r"model 'teacher' \(now 'other'\)"):
        Journal(tmp_path / "j.sqlite", {"model": "other"})


@pytest.mark.parametrize("content", [b"not sqlite" * 200, None])
def test_what_is_no_journal(tmp_path, content):
    path = tmp_path / "j.sqlite"
    if content is None:
        sqlite3.connect(path).execute("create table t (x)").connection.close()
    else:
        path.write_bytes(content)
    with pytest.raises(StoreError, match="cannot be opened"):
        Journal(path, RECIPE)
    with pytest.raises(StoreError, match="cannot be opened"):
        Journal(tmp_path, RECIPE)
