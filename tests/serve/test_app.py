"""The endpoints, by plain HTTP and a real socket, on a scripted model."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from pathlib import Path

import pytest
from serving import QUESTION, TRAINED, Gate, picture, scripted, seen, serving

from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.errors import ConfigError
from cot_engine.options.config import RunConfig
from cot_engine.options.layers import load_config
from cot_engine.serve import guard, server
from cot_engine.serve.keys import Keys, keys_from
from cot_engine.serve.limits import Allowance, Limits
from cot_engine.serve.schema import CALL, ChatRequest
from cot_engine.testing import ScriptedBackend, staged_reply

CHAT = "/v1/chat/completions"
STAGE = {"tag": "A", "purpose": "p", "question": "q"}
ONE, OTHER = "k" * 20, "l" * 20


@pytest.fixture(scope="module")
def served():
    with scripted() as engine, serving(engine, Limits(upload=200_000, pixels=10_000)) as made:
        yield made


@pytest.fixture(scope="module")
def http(served):
    with served.http() as client:
        yield client


def ask(http, messages=QUESTION, **more):
    body = {"model": "bundled", "messages": messages, **TRAINED, **more}
    return http.post(CHAT, json={key: value for key, value in body.items() if value is not ...})


def error(reply) -> dict:
    """The error of a reply, which has the shape of OpenAI's."""
    assert reply.headers["content-type"] == "application/json"
    value = reply.json()["error"]
    assert set(value) == {"message", "type", "param", "code"} and value["message"]
    return value


# --- what is answered ----------------------------------------------------------------------------


def test_a_question_is_answered_and_its_trace_is_where_the_reply_says(http):
    reply = ask(http, seen("How many?", picture()), model="bundled:stage-beam-3", seed=7).json()
    assert reply["object"] == "chat.completion" and reply["model"] == "bundled:stage-beam-3"
    [choice] = reply["choices"]
    assert choice["finish_reason"] == "stop" and choice["message"]["role"] == "assistant"
    lines = http.get(reply["cot_engine"]["trace"])
    assert lines.headers["content-type"] == "application/jsonl"
    trace = Trace.parse(lines.content, "it")
    started, finished = trace.started, trace.finished
    assert (started.strategy, started.parameters["n"], started.seed) == ("stage-beam", 3, 7)
    assert choice["message"]["content"] == finished.answer
    thought = choice["message"]["reasoning_content"]
    assert thought.startswith("SUMMARY\nAbout summary") and "\n\nREASONING\n" in thought
    assert "CONCLUSION" not in thought
    usage, total = reply["usage"], sum(finished.usage.values(), Usage())
    assert usage["completion_tokens"] == total.decoded
    assert usage["prompt_tokens"] == total.prefilled + total.cached
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == total.cached > 0
    assert usage["cot_engine"]["flops"] == total.flops


def test_the_page_of_a_trace_runs_nothing(http):
    hostile = "<script>alert(1)</script>"
    id = ask(http, [{"role": "user", "content": hostile}]).json()["id"]
    page = http.get(f"/v1/traces/{id}?html")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert hostile not in page.text and "&lt;script&gt;" in page.text


def test_a_stream_tells_each_stage_as_it_is_decided_then_the_answer(http):
    whole = ask(http, seed=3).json()
    with http.stream(
        "POST",
        CHAT,
        json={"model": "bundled", "messages": QUESTION, "stream": True, "seed": 3, **TRAINED},
    ) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
    assert [*deltas[0]] == ["role", "content"]
    message = whole["choices"][0]["message"]
    thoughts = [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta]
    assert len(thoughts) == 2 and "".join(thoughts) == message["reasoning_content"]
    assert [delta["content"] for delta in deltas[1:] if "content" in delta] == [message["content"]]
    last = json.loads(lines[-1])
    assert last["choices"][0]["finish_reason"] == "stop" and "usage" not in last
    assert last["cot_engine"]["trace"].endswith(last["id"])


def test_a_budget_of_tokens_holds_for_the_whole_search_and_an_answer_that_is_cut_says_so(http):
    reply = ask(http, max_completion_tokens=90).json()
    assert reply["usage"]["completion_tokens"] <= 90 and reply["cot_engine"]["left"] is not None
    assert reply["cot_engine"]["budget"] == "90 new tokens"

    def endless(request, seed):
        return staged_reply(request, seed).replace("</CONCLUSION>", " and" * 900)

    with scripted(Gate(endless)) as engine, serving(engine) as other, other.http() as asked:
        engine.backend.open.set()
        cut = ask(asked).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    assert "CONCLUSION reached the most tokens" in cut["cot_engine"]["incomplete"]


def test_earlier_turns_and_the_system_stand_before_the_question(http):
    messages = [
        {"role": "system", "content": "Be brief."},
        *seen("What is it?", picture()),
        {"role": "assistant", "content": "A house.", "refusal": None, "tool_calls": None},
        {
            "role": "user",
            "content": [{"type": "text", "text": "How"}, {"type": "text", "text": "?"}],
        },
    ]
    trace = Trace.parse(http.get(ask(http, messages).json()["cot_engine"]["trace"]).content, "it")
    assert trace.started.question == (
        "Be brief.\n\nEarlier in this conversation:\nUser: What is it?\nAssistant: A house."
        "\n\nHow\n?"
    )
    assert len(trace.started.images) == 1


def test_models_are_the_model_and_it_with_each_strategy(http):
    names = [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert names[0] == "bundled" and "bundled:stage-beam" in names
    assert http.get("/v1/models/bundled:best-of-n-8").json()["id"] == "bundled:best-of-n-8"
    assert error(http.get("/v1/models/gpt"))["code"] == "model_not_found"


def test_health_and_metrics_count(http):
    before = http.get("/metrics").text
    assert ask(http, model="bundled:majority-2").status_code == 200
    after = http.get("/metrics").text

    def value(text, name):
        return float(next((x.split()[-1] for x in text.splitlines() if x.startswith(name)), 0))

    name = 'cot_engine_searches_total{outcome="answered",strategy="majority"}'
    assert value(after, name) == value(before, name) + 1
    name = 'cot_engine_tokens_total{kind="decoded",role="generate"}'
    assert value(after, name) > value(before, name)
    health = http.get("/health").json()
    assert health["status"] == "ok" and health["running"] == health["waiting"] == 0


def test_every_option_of_a_call_may_be_asked_for():
    assert {*CALL, "parameters"} <= {*ChatRequest.model_fields}
    taken = {"model", "device", "memory", "in_flight", "allow_url", "max_pixels"}
    assert not taken - {"model"} & {*ChatRequest.model_fields}


def test_the_table_of_fields_has_every_one():
    table = (Path(__file__).parents[2] / "docs" / "servers.md").read_text("utf-8")
    told = set(re.findall(r"`(\w+)`", table.partition("### Fields")[2].partition("### ")[0]))
    assert not {*ChatRequest.model_fields} - told


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"stratgy": "greedy"}, "stratgy", "Did you mean strategy"),
        ({"strategy": "stage-been"}, None, "stage-beam"),
        ({"parameters": {"m": 3}}, None, "parameter of strategy stage-beam"),
        ({"n": 2}, "n", "n_candidates"),
        ({"n": True}, "n", "n is True"),
        ({"stop": ["x"]}, "stop", "end by their tags"),
        ({"tools": [{"type": "function"}]}, "tools", "no tools"),
        ({"logprobs": True}, "logprobs", "The trace has"),
        ({"response_format": {"type": "json_object"}}, "response_format", "An answer is text"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "detail"),
        ({"temperature": "1"}, "temperature", "from 0 to 100"),
        ({"seed": -1}, "seed", "whole number"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 3}, None, "cannot pay for an answer"),
        ({"max_tokens": 300, "budget": "1 s"}, "budget", "Give one of them"),
        ({"plan": "/etc/passwd"}, "plan", "valid list"),
        ({"plan": [{"tag": "a", "purpose": "p", "question": "q"}]}, None, "tag is 'a'"),
        ({"plan": [STAGE] * 33}, "plan", "at most 32 items"),
        ({"plan": [{**STAGE, "purpose": "p" * 2001}]}, "plan.0.purpose", "at most 2000 char"),
        ({"judge": ["self"]}, "judge", "judge is ['self']. It must be a text, a finite number"),
        ({"model": ...}, "model", "model is missing"),
        ({"model": 3}, "model", "valid string"),
        ({"model": "bundled:greedy", "strategy": "greedy"}, None, "Give one of them"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "x"}]}, None, "the user's"),
        ({"messages": [{"role": "user", "content": " "}]}, None, "no text"),
        ({"messages": [{"role": "user", "content": "x" * 20_001}]}, None, "20,001 characters"),
        ({"messages": seen("?", b"%PDF-1.4")}, None, "a PDF"),
        ({"messages": seen("?", picture(size=(200, 200)))}, None, "the limit is 10,000"),
    ],
)
def test_what_cannot_be_done_is_a_400_that_says_why(http, more, param, said):
    reply = ask(http, **more)
    told = error(reply)
    assert reply.status_code == 400 and told["type"] == "invalid_request_error"
    assert said in told["message"] and told["param"] == param


def test_what_a_message_quotes_is_harmless(http):
    said = error(ask(http, model="x\x1b[31m\n\u202e<b>"))["message"]
    assert "\x1b" not in said and "\n" not in said and "\u202e" not in said


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("/etc/passwd", "Send the picture itself"),
        ("file:///etc/passwd", "Send the picture itself"),
        ("data:image/png;base64,%%%", "not base64"),
        ("data:text/html,<b>", "Send the picture itself"),
        ("http://127.0.0.1:1/x.png", "none are fetched here"),
    ],
)
def test_a_picture_is_its_data_and_nothing_else(http, address, said):
    parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "?"}]
    reply = ask(http, [{"role": "user", "content": parts}])
    assert reply.status_code == 400 and said in error(reply)["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_body"),
        (b"", "application/json", 400, "invalid_value"),
        (b"[" * 100_000, "application/json", 400, "invalid_body"),
        (b'{"model": ' + b"1" * 5000 + b"}", "application/json", 400, "invalid_body"),
        (b'{"model": "\\ud800", "messages": 1}', "application/json", 400, "invalid_value"),
        (b"\xff\xfe", "application/json", 400, "invalid_body"),
        (b"{}", "text/plain", 415, "invalid_body"),
        (b" " * 200_001, "application/json", 413, "too_large"),
    ],
)
def test_bodies_that_are_none(http, body, kind, status, code):
    reply = http.post(CHAT, content=body, headers={"Content-Type": kind})
    assert (reply.status_code, error(reply)["code"]) == (status, code)


def test_a_body_without_a_length_is_bounded_too(http):
    reply = http.post(CHAT, content=(b" " * 50_000 for _ in range(10)))
    assert reply.status_code == 413


def test_a_body_that_does_not_arrive_is_waited_for_no_longer_than_a_while(served, monkeypatch):
    monkeypatch.setattr(guard, "READ_SECONDS", 0.05)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc"
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw:
        raw.sendall(head.encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_head_that_does_not_arrive_is_waited_for_no_longer_than_a_while(served, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        assert raw.recv(100) == b""


def test_what_is_no_http_is_told_as_other_errors_are(served):
    with socket.create_connection(("127.0.0.1", served.port), 5) as raw:
        raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, told = raw.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"application/json" in head
    assert b'{"error":{"message":"Invalid HTTP' in told


def test_addresses_and_methods_that_there_are_not(http):
    assert error(http.get("/nothing"))["code"] == "not_found"
    assert http.put("/health").status_code == 405
    assert error(http.get("/v1/traces/chatcmpl-0"))["code"] == "not_found"
    assert http.get("/docs").status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example:80"}, 421),
        ({"Host": "[::1]:99"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
    ],
)
def test_a_page_elsewhere_may_not_ask(http, headers, status):
    reply = http.get("/health", headers=headers)
    assert reply.status_code == status
    assert "access-control-allow-origin" not in reply.headers


def test_the_log_says_who_asked_and_not_what(http, caplog):
    with caplog.at_level(logging.INFO, "cot_engine.access"):
        secret = [{"role": "user", "content": "the secret of 7 hills"}]
        id = ask(http, secret).json()["id"]
        http.get(f"/v1/traces/{id}?html=secret", headers={"X": "secret"})
        http.get("/a%0D%0A127.0.0.1%20GET%20/b%20200%1B[31m")
        for _ in range(500):  # a line is written once its answer is sent: it may still be to come
            lines = [each.getMessage() for each in caplog.records if each.name == guard.LOG.name]
            # Nor may that of the test before have come yet, which asked for another path.
            lines = [line for line in lines if " GET /health " not in line]
            if len(lines) == 3:
                break
            time.sleep(0.01)
    assert any(line.startswith(f"127.0.0.1 POST {CHAT} 200 ") for line in lines)
    assert not any("secret" in line or id in line for line in lines)
    odd = "127.0.0.1 GET /a%0D%0A127.0.0.1%20GET%20/b%20200%1B%5B31m 404 "
    assert len(lines) == 3 and any(line.startswith(odd) for line in lines)


# --- who may ask ---------------------------------------------------------------------------------


def test_keys_say_who_asks_what_may_be_spent_and_whose_traces_are_whose():
    keys = Keys({"one": ONE, "other": OTHER})
    limits = Limits(clients={"one": Allowance(n=2)})
    with scripted() as engine, serving(engine, limits, keys=keys) as served:
        with served.http() as nobody:
            assert nobody.get("/health").status_code == 200
            for header in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {ONE}"}):
                reply = nobody.get("/v1/models", headers=header)
                assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
                assert error(reply)["code"] == "invalid_api_key"
            assert nobody.get("/metrics").status_code == 401
        with (
            served.http(headers={"Authorization": f"Bearer {ONE}"}) as one,
            served.http(headers={"Authorization": f"Bearer {OTHER}"}) as other,
        ):
            assert "n is 4; the most here is 2" in error(ask(one))["message"]
            assert ask(one, n_candidates=2).status_code == 200
            trace = ask(other).json()["cot_engine"]["trace"]
            assert other.get(trace).status_code == 200
            assert one.get(trace).status_code == 404


def test_keys_come_from_the_environment(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[[key]]\nname = "shop"\nkey = "{OTHER}"\nbudget = "9 s"\ntotal = "60 s"\nper = 3600.0\n'
    )
    environment = {"COT_ENGINE_SERVE_KEYS": f" {ONE} ,", "COT_ENGINE_SERVE_KEY_FILE": str(path)}
    keys, clients = keys_from(environment, Allowance(n=3))
    assert keys.client(ONE) == "key-1" and keys.client(OTHER) == "shop"
    assert keys.client("") is None and keys.client("\udc80") is None
    assert clients == {"shop": Allowance("9 s", "60 s", 3600.0, 3)}
    assert load_config(environment=environment) == RunConfig()
    assert not keys_from({}, Allowance())[0]


@pytest.mark.parametrize(
    ("listed", "text", "said"),
    [
        ("short", "", "has 5 characters; the least is 16"),
        (f"{ONE},{ONE}", "", "are the same"),
        ("ä" * 20, "", "no header can carry"),
        ("", f'[[key]]\nname = "../x"\nkey = "{ONE}"', "1 to 64 letters"),
        ("", f'[[key]]\nname = "x"\nkey = "{ONE}"\nbudgt = "1 s"', "budget"),
        ("", f'[[key]]\nname = "x"\nkey = "{ONE}"\ntotal = "1 s"', "not limited"),
    ],
)
def test_keys_that_will_not_do(tmp_path, listed, text, said):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    environment = {"COT_ENGINE_SERVE_KEYS": listed}
    environment |= {"COT_ENGINE_SERVE_KEY_FILE": str(path)} if text else {}
    with pytest.raises(ConfigError, match=said) as refused:
        keys_from(environment, Allowance())
    assert ONE not in str(refused.value)


# --- many at once --------------------------------------------------------------------------------


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def send(served, body: bytes, reads: int = 0) -> socket.socket:
    """A request on a connection of its own, of which nothing is read yet; it has room for `reads`
    bytes."""
    raw = socket.socket()
    raw.settimeout(30)
    if reads:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, reads)
    raw.connect(("127.0.0.1", served.port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return raw


def body(**more) -> bytes:
    return json.dumps({"model": "bundled", "messages": QUESTION, **TRAINED, **more}).encode()


def test_a_client_that_leaves_ends_its_search_and_a_full_queue_is_a_429():
    with scripted(Gate(), 1) as engine, serving(engine, Limits(queue=1)) as served:
        leaving = [send(served, body()), send(served, body(stream=True))]
        until(lambda: served.desk.running == 1 and served.desk.waiting == 1)
        with served.http() as http:
            full = ask(http)
            assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
            assert error(full)["code"] == "queue_full"
            for raw in leaving:
                raw.close()
            until(lambda: served.desk.running == served.desk.waiting == 0)
            engine.backend.open.set()
            assert ask(http).status_code == 200
            assert 'outcome="cancelled"' in http.get("/metrics").text


def test_who_reads_slowly_holds_nobody_up():
    """Its search ends and gives its place back though what it is sent finds no room anywhere."""

    def wordy(request, seed):
        return staged_reply(request, seed).replace("About", "w" * 8_000_000, 1)

    with scripted(ScriptedBackend(wordy), 1) as engine, serving(engine) as served:
        asked = body(stream=True, strategy="greedy")
        with send(served, asked, reads=4096), served.http() as http:
            until(lambda: len(served.desk.shelf) == 1)
            engine.backend.script = staged_reply
            assert ask(http).status_code == 200
            until(lambda: len(served.server.server_state.tasks) == 1)  # its own is not sent yet


def test_uploads_of_all_together_are_bounded():
    limits = Limits(upload=1000, uploads=1500)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with scripted() as engine, serving(engine, limits) as served, served.http() as http:
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as raw:
            raw.sendall(head.encode())  # and nothing more, which keeps nobody out
            assert http.post(CHAT, content=b" " * 900).status_code == 415
            raw.sendall(b" " * 700)
            until(lambda: http.post(CHAT, content=b" " * 900).status_code == 429)
            assert http.post(CHAT, content=b" " * 800).status_code == 415
        until(lambda: http.post(CHAT, content=b" " * 900).status_code == 415)


def test_a_server_that_closes_hands_back_what_waits():
    with scripted(Gate(), 1) as engine, serving(engine) as served:
        running, waiting = send(served, body()), send(served, body())
        until(lambda: served.desk.running == 1 and served.desk.waiting == 1)
        served.stop()
        back = waiting.recv(10_000)
        assert back.startswith(b"HTTP/1.1 503 ") and b"retry-after: 5" in back.lower()
        engine.backend.open.set()
        assert running.recv(10_000).startswith(b"HTTP/1.1 200 ")
