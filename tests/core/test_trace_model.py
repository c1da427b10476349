"""A trace does not choose the model that is loaded: whoever wrote it could name any."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from command_line import two_lines
from make_traces import stage_beam

from cot_engine.core.trace import Trace


@pytest.fixture
def told(tmp_path):
    """told(model): the path of a trace that names that model."""

    def write(model):
        started, *rest = stage_beam().events
        backend = replace(started.backend, model=model)
        Trace([replace(started, backend=backend), *rest]).write(tmp_path / "t.jsonl")
        return SimpleNamespace(path=tmp_path / "t.jsonl", seen=tmp_path / "seen")

    return write


def loaded(trace):
    return trace.seen.read_text() if trace.seen.exists() else None


@pytest.mark.parametrize("judge", ["self", "self+likelihood", "auto", "rationale"])
@pytest.mark.parametrize("model", ["stranger/model", "EVIL"])
def test_a_model_that_the_trace_alone_names_is_refused(cli, told, tmp_path, model, judge):
    (tmp_path / "EVIL").mkdir()
    (tmp_path / "EVIL" / "cot_engine.json").write_text('{"judge": "likelihood"}')
    model = str(tmp_path / model) if model == "EVIL" else model
    trace = told(model)
    done = cli("trace", trace.path, "--judge", judge, SEEN=trace.seen)
    assert done.returncode == 2 and loaded(trace) is None
    said = two_lines(done)
    assert model in " ".join(said.split()) and "'bundled'" in said and "--model" in said


def test_a_model_that_is_agreed_to_is_loaded(cli, told):
    trace = told("stranger/model")
    done = cli("trace", trace.path, "--judge", "self", "-m", "other/model", SEEN=trace.seen)
    assert done.returncode == 0, done.stderr
    assert loaded(trace) == "other/model"
    trace.seen.unlink()
    mine = {"SEEN": trace.seen, "COT_ENGINE_MODEL": "stranger/model"}
    assert cli("trace", trace.path, "--judge", "self", **mine).returncode == 0
    assert loaded(trace) == "stranger/model"


def test_the_bundled_one_needs_no_agreement(cli, told):
    trace = told("bundled")
    mine = {"SEEN": trace.seen, "COT_ENGINE_MODEL": "my/model"}
    assert cli("trace", trace.path, "--judge", "self", **mine).returncode == 0
    assert loaded(trace) == "bundled"


def test_what_asks_no_model_needs_none(cli, told):
    trace = told("stranger/model")
    for again in (["--judge", "likelihood"], ["--judge", "random", "--tournament", "swiss"]):
        assert cli("trace", trace.path, *again, SEEN=trace.seen).returncode == 0
    assert loaded(trace) is None
