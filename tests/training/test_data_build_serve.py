"""`data build` against a server that others wrote: `transformers serve` with the bundled model.

It answers the protocol for real: pictures as data addresses, tokens counted, errors of its own.
The model was never shown a teacher's prompt, so what it writes may well be set aside; that each
reply is paid for, kept and read, is what is tested.
"""

import json
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from teacher_process import build, environment, lines

import cot_engine
from cot_engine import scenes

MODEL = Path(cot_engine.__file__).parent / "bundled"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The server's address, when it answers."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(MODEL)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with (
        log.open("w") as file,
        subprocess.Popen(
            [*command, "--dtype", "float32"],
            env=environment(**offline),
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            end = time.monotonic() + 240
            while True:
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.3)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def replies(path):
    with closing(sqlite3.connect(path)) as db:
        return db.execute("select body, prompt, completion from replies order by rowid").fetchall()


@pytest.mark.slow
def test_a_server_that_others_wrote(tmp_path, url):
    rows = []
    for at in range(3):
        scene = scenes.sample(0, at, "val")
        scene.picture().save(tmp_path / f"{at}.png")
        row = {"id": str(at), "question": scene.prompt, "answer": scene.answer}
        rows += [row | {"image": f"{at}.png"}, row | {"id": f"blind {at}"}]
    data = tmp_path / "q.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "rows.jsonl"
    how = ["--base-url", url, "--out", out, "--max-tokens", 120, "--tries", 2, "--in-flight", 1]

    done = build(data, *how, "--model", MODEL, "--check", "rules", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kept"] + sum(report["aside"].values()) == 6 and not report["left"]
    assert set(report["aside"]) <= {"stages", "wrong", "length"}, done.stdout
    assert len(lines(out)) == report["kept"]
    had = replies(tmp_path / "rows.journal.sqlite")
    spent = report["spent"]["write"]
    assert spent["calls"] == len(had) == report["kept"] + sum(report["attempts"].values())
    assert spent["uncounted"] == 0 and all(completion for _, _, completion in had)
    assert all(json.loads(body)["choices"][0]["message"]["content"] for body, *_ in had)
    # A picture takes a place for each patch in this model's prompt: they did arrive.
    vision = json.loads((MODEL / "config.json").read_text())["vision_config"]
    prompts = [prompt for _, prompt, _ in had]
    assert max(prompts) - min(prompts) > (vision["image_size"] // vision["patch_size"]) ** 2

    again = build(data, *how, "--model", MODEL, "--check", "rules", "--json")
    assert json.loads(again.stdout) == report
    assert replies(tmp_path / "rows.journal.sqlite") == had, "nothing was asked again"


@pytest.mark.slow
def test_a_told_picture(tmp_path, url):
    scene = scenes.sample(0, 0, "val")
    scene.picture().save(tmp_path / "a.png")
    row = {"id": "1", "image": "a.png", "captions": ["A red square is left of a green circle."]}
    data = tmp_path / "told.jsonl"
    data.write_text(json.dumps(row))
    how = ["--base-url", url, "--model", MODEL, "--max-tokens", 80, "--tries", 1, "--json"]
    done = build(data, *how, "--teacher", "llava", "--out", tmp_path / "rows.jsonl")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kept"] + sum(report["aside"].values()) == report["spent"]["write"]["calls"] == 3
