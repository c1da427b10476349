"""The server of `benchmarks/vllm_server.py` does not outlive whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def until(true, seconds=20.0):
    over = time.monotonic() + seconds
    while not true() and time.monotonic() < over:
        time.sleep(0.02)
    return true()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the block is all there is")
def test_a_server_ends_with_a_process_that_is_killed(tmp_path):
    """No block is left then, and vLLM would go on with 2.6 GB of memory."""
    venv, model, number = tmp_path / "venv", tmp_path / "model", tmp_path / "number"
    (venv / "bin").mkdir(parents=True)
    model.mkdir()
    (venv / "cot-engine-ready").touch()
    python = (
        venv / "bin" / "python"
    )  # what is started in place of vLLM: it says who it is, and waits
    python.write_text(
        f"#!/bin/sh\necho $$ > {number}.new\nmv {number}.new {number}\nexec sleep 60\n"
    )
    python.chmod(0o755)
    code = (
        "import pathlib, vllm_server\n"
        f"with vllm_server.serving(pathlib.Path({str(model)!r}), pathlib.Path({str(venv)!r})): pass"
    )
    begun = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS), "TMPDIR": str(tmp_path)},
    )
    try:
        assert until(number.exists)
        server = int(number.read_text())
        begun.send_signal(signal.SIGKILL)
        begun.wait(10)
        # Whoever takes an orphan in may not ask how it ended: a zombie is gone, too.
        stat = Path(f"/proc/{server}/stat")
        assert until(lambda: not stat.exists() or ") Z " in stat.read_text())
    finally:
        begun.kill()
