"""A stranger's package: installed with pip, listed, run; and a broken one beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "third_party_strategy"
SCRIPTED = Path(__file__).parents[1] / "scripted_cli.py"


def installed(source: Path, folder: Path) -> Path:
    """Install a package as a user would, offline, into a folder of its own."""
    copy = folder / "source"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(folder / "site"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return installed(EXAMPLE, tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The same package, but what its entry point names is not there."""
    source = tmp_path_factory.mktemp("broken") / "package"
    shutil.copytree(EXAMPLE, source)
    project = source / "pyproject.toml"
    text = project.read_text().replace("cot-engine-likelihood-beam", "cot-engine-broken")
    text = text.replace('likelihood-beam = "likelihood_beam:', 'broken-beam = "broken_beam:')
    project.write_text(text.replace('["likelihood_beam"]', '["broken_beam"]'))
    (source / "likelihood_beam.py").unlink()
    (source / "broken_beam.py").write_text("import something_that_is_not_there\n")
    return installed(source, tmp_path_factory.mktemp("broken_site"))


def run(*command: str, path: list[Path]) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COT_ENGINE_")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300
    )


def listed(path: list[Path]) -> dict[str, dict]:
    done = run("-m", "cot_engine", "list", "strategies", "--json", path=path)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_it_is_listed_with_its_parameters(example):
    row = listed([example])["likelihood-beam"]
    assert "likeliest" in row["about"]
    assert row["parameters"] == {"n": 4, "scorer": "likelihood"}
    assert "likelihood-beam" not in listed([])


def test_it_runs_and_its_trace_shows_that_nothing_was_judged(example, tmp_path):
    trace = tmp_path / "t.jsonl"
    command = [str(SCRIPTED), "solve", "How many?", "--strategy", "likelihood-beam"]
    done = run(*command, "-n", "3", "--trace", str(trace), path=[example])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in {"0", "1", "2", "3", "4"}
    events = [json.loads(line) for line in trace.read_text("utf-8").splitlines()]
    assert events[0]["strategy"] == "likelihood-beam"
    assert events[0]["parameters"] == {"n": 3, "scorer": "likelihood"}
    kinds = [event["event"] for event in events]
    assert kinds.count("scored") == 3 and "judged" not in kinds


def test_it_conforms(example):
    check = "from cot_engine.testing import check_strategy; import likelihood_beam as m;"
    done = run("-c", check + "check_strategy(m.LikelihoodBeam(n=3))", path=[example])
    assert done.returncode == 0, done.stderr


def test_its_own_bad_parameters_are_explained(example):
    command = [str(SCRIPTED), "solve", "How many?", "--strategy", "likelihood-beam"]
    done = run(*command, "-p", "scroer=likelihood", path=[example])
    assert done.returncode == 2
    assert "scroer" in done.stderr and "scorer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_one_hides_no_other_and_is_named(example, broken):
    rows = listed([broken, example])
    assert {"stage-beam", "likelihood-beam", "broken-beam"} <= set(rows)
    assert "cot-engine-broken" in rows["broken-beam"]["about"]
    assert "something_that_is_not_there" in rows["broken-beam"]["about"]
    command = [str(SCRIPTED), "solve", "How many?", "--strategy"]
    fine = run(*command, "likelihood-beam", path=[broken, example])
    assert fine.returncode == 0, fine.stderr
    bad = run(*command, "broken-beam", path=[broken, example])
    assert bad.returncode == 2 and bad.stdout == ""
    assert "cot-engine-broken" in bad.stderr and "Traceback" not in bad.stderr


# --- a backend -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def urn(tmp_path_factory):
    return installed(EXAMPLES / "third_party_backend", tmp_path_factory.mktemp("urn"))


def test_a_strangers_backend_is_opened_by_the_name_of_its_model(urn, tmp_path):
    trace = tmp_path / "t.jsonl"
    command = ["-m", "cot_engine", "solve", "Will it rain?", "--model", "urn:yes,no"]
    done = run(*command, "--trace", str(trace), path=[urn])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in {"yes", "no"}
    started = json.loads(trace.read_text("utf-8").splitlines()[0])
    assert (started["backend"]["name"], started["backend"]["model"]) == ("urn", "urn:yes,no")
    bad = run(*command[:-1], "urn:", path=[urn])
    assert bad.returncode == 2 and "is empty" in bad.stderr and "Traceback" not in bad.stderr
    assert "no model folder 'urn:yes,no'" in run(*command, path=[]).stderr


def test_a_strangers_backend_conforms_and_gets_its_parameters(urn):
    code = """
from cot_engine import CotEngineError, Engine, Problem
from cot_engine.testing import check_backend
from urn import Urn

for chatty in (False, True):
    check_backend(Urn(chatty).open("urn:a,b,c"), Problem("p", "Which?"))

for model, backend, given in [
    ("urn:yes", None, {"chatty": True}),
    ("urn:yes", "urn(chatty=true)", {}),
    ("yes", Urn(chatty=True), {}),
]:
    with Engine.from_pretrained(model, backend=backend, **given) as engine:
        text = engine.solve(None, "Will it rain?", strategy="greedy").text
        assert "hold yes" in text, text
for given, said in [
    ({"device": "cuda"}, "device is for a model in this process"),
    ({"chaty": True}, "Did you mean chatty"),
    ({"backend": "urm"}, "Did you mean urn"),
    ({"backend": Urn(), "chatty": True}, "beside chatty"),
    ({"backend": Urn}, "is not a backend"),
]:
    try:
        Engine.from_pretrained("urn:yes", **given)
        raise SystemExit(said)
    except CotEngineError as error:
        assert said in str(error), error
"""
    done = run("-c", code, path=[urn])
    assert done.returncode == 0, done.stderr
