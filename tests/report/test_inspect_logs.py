"""Logs of Inspect AI: read back by inspect itself, number by number, and shown by its viewer."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from dataclasses import asdict

import make_store
import pytest
from browser import CHROMIUM

from cot_engine.ablation.store import Store
from cot_engine.core.usage import Usage
from cot_engine.errors import CotEngineError, StoreError
from cot_engine.report.inspect_logs import SCORER, write_logs

PROBLEMS, SEEDS = 9, (0, 1, 7)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store, its run, and the logs of it."""
    pytest.importorskip("inspect_ai", reason="Inspect AI is not installed")
    folder = tmp_path_factory.mktemp("inspect")
    store, run = make_store.make_store(folder / "test.sqlite", PROBLEMS, SEEDS, traces=4)
    with store:
        yield store, run, write_logs(store, run, folder / "logs")


def logs_of(paths):
    from inspect_ai.log import read_eval_log

    return [read_eval_log(str(path)) for path in paths]


def test_every_number_is_the_stores(made):
    from inspect_ai.log import list_eval_logs
    from inspect_ai.scorer import value_to_float

    store, run, paths = made
    assert [path.parent for path in paths] == [paths[0].parent] * len(run.cells)
    listed = {info.name.rpartition("/")[2] for info in list_eval_logs(str(paths[0].parent))}
    assert listed == {path.name for path in paths}
    rows = {row.key: row for row in store.rows(run)}
    items = {item.digest: item for item in run.items}
    seen = []
    for (cell, (label, plain)), log in zip(run.cells.items(), logs_of(paths), strict=True):
        assert log.status == "success"  # what is matched to a failed search cannot be missing
        assert log.eval.task == f"main: {label}"
        assert (log.eval.run_id, log.eval.task_id, log.eval.model) == (run.id, cell, "bundled")
        assert (log.eval.solver, log.eval.solver_args) == (plain["strategy"], plain["parameters"])
        assert (log.eval.dataset.name, log.eval.dataset.samples) == ("scenes", PROBLEMS)
        assert log.eval.metadata["config"] == plain
        assert log.eval.metadata["code"] == run.code
        total = Usage()
        for sample in log.samples:
            key = tuple(sample.metadata["key"])
            row, item = rows[key], items[key[2]]
            seen.append(key)
            assert (sample.id, run.seeds[sample.epoch - 1]) == (item.problem, row.key.seed)
            assert (sample.input, sample.target) == (item.question, item.expected)
            assert sample.metadata["usage"] == {r: asdict(u) for r, u in row.usage.items()}
            assert list(sample.metadata["budget"].values()) == [
                row.unit, row.allotted, row.spent, row.remaining,
            ]  # fmt: skip
            assert sample.metadata["faults"] == row.faults
            assert len(sample.model_dump_json()) < 8_000  # the traces are not in it
            if row.status == "failed":
                assert sample.error.message == row.error and sample.scores is None
                continue
            assert sample.error is None
            assert value_to_float()(sample.scores[SCORER].value) == row.correct
            assert sample.scores[SCORER].answer == sample.output.completion == row.answer
            assert sample.messages[-1].text == response(store, run, row)
            spent = sum(row.usage.values(), Usage())
            tokens = sample.model_usage["bundled"]
            assert (tokens.input_tokens, tokens.output_tokens) == (spent.prefilled, spent.decoded)
            assert (tokens.total_tokens, tokens.input_tokens_cache_read) == (
                spent.tokens,
                spent.cached,
            )
            total += spent
        assert log.stats.model_usage["bundled"].total_tokens == total.tokens
        assert (log.results.total_samples, log.results.completed_samples) == (
            len(log.samples),
            sum(s.error is None for s in log.samples),
        )
        metrics_are_inspects_own(log)
    assert sorted(seen) == sorted(rows) and len(rows) > 200


def response(store, run, row):
    """All stages, where the store has the trace; else the conclusion."""
    try:
        trace = store.trace(run, row.key)
    except StoreError:
        return row.answer
    return trace.chains()[trace.finished.chain].text


def metrics_are_inspects_own(log):
    from inspect_ai.scorer import SampleScore, Score, accuracy, stderr, value_to_float

    by_problem: dict[str, list[float]] = {}
    for sample in log.samples:
        if sample.scores:
            value = value_to_float()(sample.scores[SCORER].value)
            by_problem.setdefault(sample.id, []).append(value)
    means = [
        SampleScore(score=Score(value=sum(values) / len(values))) for values in by_problem.values()
    ]
    metrics = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
    assert metrics["accuracy"] == pytest.approx(accuracy()(means))
    assert metrics["stderr"] == pytest.approx(stderr()(means))
    reduced = {s.sample_id: s.value for s in log.reductions[0].samples}
    assert reduced == {p: pytest.approx(sum(v) / len(v)) for p, v in by_problem.items()}


def test_a_choice_of_rows(made, tmp_path):
    store, run, every = made
    paths = write_logs(store, run, tmp_path, "label = 'greedy' and seed = 7")
    assert [path.name for path in paths] == [every[0].name]
    (log,) = logs_of(paths)
    assert [s.epoch for s in log.samples] == [3] * PROBLEMS
    assert log.status == "success" and "seed = 7" in log.eval.metadata["where"]
    assert write_logs(store, run, tmp_path, "seed = 5") == []
    with pytest.raises(StoreError, match="cannot be used"):
        write_logs(store, run, tmp_path, "nonsense")


def test_partial_scores_are_numbers_and_what_is_missing_is_said(tmp_path):
    pytest.importorskip("inspect_ai", reason="Inspect AI is not installed")
    cells = {make_store.digest("a"): ("best-of-n n=2", make_store.plain("best-of-n", {"n": 2}))}
    run = make_store.make_run(2, (0,), cells, name="a_b/<c>")
    with Store(tmp_path / "test.sqlite", create=True) as store:
        store.begin(run)
        make_store.put(store, run, "best-of-n n=2", 0, 0, 0.25)
        (path,) = write_logs(store, run, tmp_path / "logs")
        (log,) = logs_of([path])
        assert log.status == "cancelled" and log.eval.created
        assert log.samples[0].scores[SCORER].value == 0.25
        assert log.results.scores[0].metrics["accuracy"].value == 0.25
        make_store.put(store, run, "best-of-n n=2", 1, 0, None, error="It broke.")
        assert write_logs(store, run, tmp_path / "logs") == [path]  # replaced
        (log,) = logs_of([path])
        assert (log.status, log.eval.task) == ("success", "a_b/<c>: best-of-n n=2")
        assert log.samples[1].error.message == "It broke."


def test_inspect_is_an_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(CotEngineError, match=r"pip install 'inspect-ai.*'\.\[inspect\]'"):
        write_logs(None, None, tmp_path)


# --- inspect's own viewer ------------------------------------------------------------------------


@pytest.fixture
def viewer(made, tmp_path):
    """The address of `inspect view` on the logs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = made[2][0].parent
    command = [sys.executable, "-m", "inspect_ai", "view", "start", "--log-dir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    said = tmp_path / "said"
    with said.open("wb") as file:
        env = os.environ | {"XDG_DATA_HOME": str(tmp_path)}  # it leaves a note of its port there
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=tmp_path, env=env)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                fetch(f"http://127.0.0.1:{port}/")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, said.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def fetch(url):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(url, timeout=60) as reply:
        return reply.read()


def test_the_viewer_serves_and_shows_them(made, viewer):
    _, run, paths = made
    files = json.loads(fetch(f"{viewer}/api/logs"))["files"]
    assert {file["name"].rpartition("/")[2] for file in files} == {path.name for path in paths}
    for file in files[:2]:
        log = json.loads(fetch(f"{viewer}/api/logs/{urllib.parse.quote(file['name'], safe='')}"))
        label, _ = run.cells[log["eval"]["task_id"]]
        assert log["eval"]["task"] == f"main: {label}"
        assert len(log["samples"]) >= PROBLEMS * len(SEEDS) - 1
    if CHROMIUM is None:
        pytest.skip("no Chromium: the viewer's page was not opened")
    text = asyncio.run(shown(viewer, "main: stage-beam n=4"))
    assert "main: stage-beam n=4" in text, text
    assert "bundled" in text


async def shown(url, wanted, seconds=60):
    """The text of a page once it holds `wanted`, or when the time is up. The viewer works after
    the page is loaded, in real time, so dumping the page would come too early."""
    import aiohttp  # inspect needs it

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = (
            "--headless --no-sandbox --disable-gpu --no-first-run --window-size=1500,1000".split()
        )
        command = [CHROMIUM, *flags, "--remote-debugging-port=0", f"--user-data-dir={folder}"]
        browser = subprocess.Popen(
            [*command, "about:blank"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        try:
            found = (re.search(r"listening on ws://([^/]+)/", line) for line in browser.stderr)
            address = next(filter(None, found))[1]
            async with aiohttp.ClientSession() as session:
                async with session.put(f"http://{address}/json/new?{url}") as reply:
                    page = await reply.json(content_type=None)
                socket_url = page["webSocketDebuggerUrl"]
                async with session.ws_connect(socket_url, max_msg_size=0) as talk:
                    deadline, number, text = time.monotonic() + seconds, 0, ""
                    while wanted not in text and time.monotonic() < deadline:
                        await asyncio.sleep(0.2)
                        number += 1
                        look = {"expression": "document.body ? document.body.innerText : ''"}
                        await talk.send_json(
                            {"id": number, "method": "Runtime.evaluate", "params": look}
                        )
                        reply = await talk.receive_json()
                        text = reply["result"]["result"].get("value", "")
                    return text
        finally:
            browser.terminate()
            browser.wait(30)
            browser.stderr.close()
