"""`cot-engine serve` in a process of its own: what it prints, its signals, its end."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx
import pytest
from command_line import process, two_lines
from serving import QUESTION, TRAINED


@contextmanager
def started(*arguments, script="", **variables):
    """The process and a client of it, once it serves."""
    command, environment = process("serve", "--port", "0", *arguments, script=script)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment | variables, **streams) as running:
        try:
            line = running.stdout.readline()
            found = re.match(r"(http://127\.0\.0\.1:\d+)/v1 serves bundled\b", line)
            assert found, line
            with httpx.Client(base_url=found[1], timeout=60, trust_env=False) as http:
                yield running, http
        finally:
            running.kill()


class Asking(threading.Thread):
    """A question on its way; `reply` is there once it was answered."""

    def __init__(self, http) -> None:
        super().__init__()
        self.http, self.reply = http, None
        self.start()

    def run(self) -> None:
        body = {"model": "bundled", "messages": QUESTION, **TRAINED}
        self.reply = self.http.post("/v1/chat/completions", json=body)


def until(http, running, waiting):
    while (now := http.get("/health").json())["running"] < running or now["waiting"] < waiting:
        pass


def test_a_signal_lets_end_what_runs_and_hands_back_what_waits(tmp_path):
    folder = tmp_path / "kept"
    with started("--in-flight", "1", "--traces", folder, script="slow") as (server, http):
        asked = [Asking(http)]
        until(http, 1, 0)
        asked.append(Asking(http))
        until(http, 1, 1)
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=60)[1]
        for each in asked:
            each.join()
    ended, back = (each.reply for each in asked)
    assert server.returncode == 0
    assert ended.status_code == 200 and ended.json()["choices"][0]["message"]["content"]
    assert back.status_code == 503 and int(back.headers["retry-after"]) > 0
    assert back.json()["error"]["code"] == "closing"
    assert "Closing: 1 running searches have 30 seconds to end, 1 that wait" in said
    assert "127.0.0.1 POST /v1/chat/completions 200" in said and "Traceback" not in said
    [kept] = folder.rglob("*.jsonl")
    assert kept.stem == ended.json()["id"]
    assert json.loads(kept.read_text().splitlines()[0])["event"] in ("started", "notice")


def test_a_second_signal_ends_at_once():
    with started("--quiet", script="slow") as (server, http):
        asked = Asking(http)
        until(http, 1, 0)
        server.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(0.3)
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=60)[1]
        asked.join()
    assert server.returncode == 130 and asked.reply.status_code == 503
    assert said == "Ended at once.\n"


def test_what_will_not_do_is_said_before_a_model_loads(cli, tmp_path):
    seen = tmp_path / "loaded"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, said in [
            (["--host", "0.0.0.0"], "there are no API keys"),
            (["--port", port], "cannot be listened at"),
            (["--max-total", "9 s"], "not limited"),
            (["--n", "17"], "n is 17; the most here is 16"),
            (["--strategy", "stage-been"], "stage-beam"),
            (["--max-queue", "-1"], "--max-queue is -1"),
        ]:
            assert said in two_lines(cli("serve", *arguments, SEEN=seen))
    environment = {"COT_ENGINE_SERVE_KEYS": "short", "SEEN": seen}
    assert "the least is 16" in two_lines(cli("serve", **environment))
    assert not seen.exists()


def test_a_package_that_is_not_there_is_named(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    said = two_lines(cli("serve"))
    assert "Serving needs fastapi." in said and ".[serve]" in said
