"""Fitting a probe: what is there is found, calibrated, measured apart; what cannot be is said."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cot_engine.errors import InputError, StoreError
from cot_engine.judging.probe import WHOLE, Probe
from cot_engine.training.probe_fit import (
    LEAST,
    check_enough,
    fit_probe,
    logits,
    split,
    whole_features,
)
from cot_engine.training.probe_measure import measure, sentences, weighted
from cot_engine.training.probe_samples import SampleFolder, Samples, _Rows

STAGES = ("CAPTION", "CONCLUSION")
SIZE = 12  # two layers of six


def made(seed=0, problems=400, n=4, slope=3.0, claims=True):
    """Responses whose state at the end says how likely they are right, by one direction; captions
    are right where all of their claims are, each by a direction of its own."""
    rng = np.random.default_rng(seed)
    rows = problems * n
    way, own = rng.normal(size=SIZE), rng.normal(size=SIZE)
    end = rng.normal(size=(rows, SIZE))
    chance = 1 / (1 + np.exp(-slope * end @ way / np.linalg.norm(way)))
    label = rng.random(rows) < chance
    count = 3
    claim = rng.normal(size=(rows * count, SIZE))
    true = rng.random(rows * count) < 1 / (1 + np.exp(-2 - 3 * claim @ own / np.linalg.norm(own)))
    facts = true.reshape(rows, count).all(1)
    arrays = {
        "problem": np.repeat(np.arange(problems), n),
        "answer": np.where(label, 0, 1 + rng.integers(0, 3, rows)),
        "label": label,
        "nats": -rng.random(rows) * 20,
        "tokens": np.full(rows, 20),
        "mean": rng.normal(size=(rows, SIZE)),
    }
    for tag in STAGES:
        arrays[f"closed/{tag}"] = np.ones(rows)
        arrays[f"end/{tag}"] = end if tag == "CONCLUSION" else rng.normal(size=(rows, SIZE))
        arrays[f"mean/{tag}"] = rng.normal(size=(rows, SIZE))
        arrays[f"nats/{tag}"] = -rng.random(rows) * 5
        arrays[f"tokens/{tag}"] = np.full(rows, 5)
        arrays[f"facts/{tag}"] = facts if tag == "CAPTION" else np.full(rows, math.nan)
    if claims:
        arrays |= {
            "claim": claim,
            "claim_row": np.repeat(np.arange(rows), count),
            "claim_stage": np.zeros(rows * count),
            "claim_true": true,
        }
    samples = Samples({k: np.asarray(v, np.float32) for k, v in arrays.items()}, STAGES)
    return samples, chance


def fitted(samples, marks=None):
    parts = split(samples.problem, [f"p{i}" for i in range(int(samples.problem.max()) + 1)])
    made_, heads, notes = fit_probe(samples, parts, (0, -1), SIZE // 2, marks or {}, "digest")
    return made_, heads, notes, parts


def test_what_is_there_is_found_and_its_probabilities_are_true():
    samples, chance = made()
    probe, heads, notes, parts = fitted(samples, {"CAPTION": "."})
    assert not notes and heads.keys() == {"CAPTION", "CONCLUSION", "claim:CAPTION", WHOLE}
    says = 1 / (1 + np.exp(-logits(probe.heads[WHOLE], whole_features(samples))))
    rest = parts.measuring
    assert np.abs(says - chance)[rest].mean() < 0.08
    for count, said, right in measure(probe, samples, rest).calibration:
        assert abs(said - right) < 4 * math.sqrt(0.25 / count)
    stage = next(row for row in measure(probe, samples, rest).pairs if row.stage == "CAPTION")
    assert stage.probe.estimate > 0.8, "claims are read one by one"
    assert abs(stage.likelihood.estimate - 0.5) < 0.15


def test_votes_are_those_of_a_count_by_hand():
    samples, _ = made()
    probe, _, _, parts = fitted(samples)
    measured = measure(probe, samples, parts.measuring)
    says = 1 / (1 + np.exp(-logits(probe.heads[WHOLE], whole_features(samples))))
    right = {"vote": 0, "majority": 0, "oracle": 0, "best": 0}
    problems = sorted({int(p) for p in samples.problem[parts.measuring]})
    for problem in problems:
        own = [i for i in range(len(samples)) if samples.problem[i] == problem]
        votes, weights = {}, {}
        for i in own:
            likely = math.exp(samples.nats[i] / samples.tokens[i])
            number, more = votes.get(samples.answer[i], (0, 0.0))
            votes[samples.answer[i]] = (number + 1, more + likely)
            weights[samples.answer[i]] = weights.get(samples.answer[i], 0.0) + says[i]
        right["majority"] += max(votes, key=votes.get) == 0
        right["vote"] += max(weights, key=weights.get) == 0
        right["oracle"] += any(samples.label[i] for i in own)
        right["best"] += bool(samples.label[max(own, key=lambda i: says[i])])
    row = measured.votes[-1]
    assert row.n == 4
    for name, count in right.items():
        assert getattr(row, name).estimate == pytest.approx(count / len(problems))
    assert row.vote.estimate > row.majority.estimate + 0.05
    assert any("weighted by the probe" in said for said in sentences(measured))


def test_a_vote_may_begin_with_one_response_of_each_problem():
    samples, _ = made(claims=False)
    probe, _, _, parts = fitted(samples)
    likeliest = np.arange(len(samples)) % 4 == 3
    sampled, first = parts.measuring & ~likeliest, parts.measuring & likeliest
    plain, begun = weighted(probe, samples, sampled), weighted(probe, samples, sampled, first)
    problems = len(set(samples.problem[parts.measuring]))
    assert plain.lead.shape == (problems, 3) and begun.lead.shape == (problems, 4)
    assert (begun.earned[:, 0] == samples.label[first]).all()
    first[np.flatnonzero(first)[0]] = False  # of one it failed
    assert len(weighted(probe, samples, sampled, first).lead) == problems - 1


def test_labels_that_say_nothing_make_a_probe_that_says_the_share():
    """The control: no head may be sure of what is not there."""
    samples, _ = made(slope=0.0, claims=False)
    probe, _, _, parts = fitted(samples)
    measured = measure(probe, samples, parts.measuring)
    assert measured.loss > measured.base - 0.02
    says = 1 / (1 + np.exp(-logits(probe.heads[WHOLE], whole_features(samples))))
    assert np.abs(says - 0.5).max() < 0.25
    low, high = (
        measured.votes[-1].difference.difference.low,
        measured.votes[-1].difference.difference.high,
    )
    assert low <= 0 <= high and any("not shown to help" in said for said in sentences(measured))


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_or_all_wrong_is_an_error_that_says_so(right):
    samples, _ = made(problems=40, claims=False)
    samples.arrays["label"][:] = right
    with pytest.raises(InputError, match=rf"are right, and it takes {LEAST} of either kind"):
        fitted(samples)


def test_a_problem_is_in_one_part_and_stays_there():
    names = [f"p{i}" for i in range(500)]
    problems = np.repeat(np.arange(500), 3)
    parts = split(problems, names)
    each = [set(problems[rows].tolist()) for rows in (parts.fitting, parts.tuning, parts.measuring)]
    assert sum(map(len, each)) == 500 == len(set.union(*each))
    assert all(len(part) > 40 for part in each)
    fewer = split(problems[:300], names)
    assert (fewer.fitting == parts.fitting[:300]).all()


def test_samples_made_otherwise_are_not_mixed_with_these(tmp_path):
    SampleFolder(tmp_path, {"n": 4, "layers": (1, -1)})
    SampleFolder(tmp_path, {"n": 4, "layers": (1, -1)})
    with pytest.raises(StoreError, match=r"made otherwise: n 4 \(now 5\)\."):
        SampleFolder(tmp_path, {"n": 5, "layers": (1, -1)})


def test_what_cannot_be_enough_is_said_before_hours_of_sampling():
    names = [f"p{i}" for i in range(60)]
    check_enough(names, 8)
    with pytest.raises(
        InputError, match=r"60 questions with 4 responses .* calibrate on, and .* 40"
    ):
        check_enough(names, 4)
    with pytest.raises(InputError, match="to fit on"):
        check_enough(names[:1], 4)


def test_parts_are_read_one_behind_the_other(tmp_path):
    folder, whole = SampleFolder(tmp_path, {}), []
    for part in (0, 1):
        rows = _Rows(STAGES, SIZE)
        for row in range(3):
            rows.add("label", part)
            rows.add("claim", np.full(SIZE, row))
            rows.add("claim_row", row)
            whole.append(3 * part + row)
        folder.write(part, rows)
    samples = folder.read(STAGES)
    assert samples.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert samples.claim_row.tolist() == whole
    with pytest.raises(InputError, match="Not one response"):
        SampleFolder(tmp_path / "none", {}).read(STAGES)


def test_a_damaged_part_is_named(tmp_path):
    folder = SampleFolder(tmp_path, {})
    folder.path(3).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(StoreError, match=r"samples-00003.npz' cannot be read.*Delete that file"):
        folder.read(STAGES)


def command(folder, *more):
    from cot_engine.engine.facade import BUNDLED

    return [
        *(sys.executable, "-m", "cot_engine", "train-verifier", "scenes/val", "--out", str(folder)),
        *("--model", str(BUNDLED), "-t", "1.2", "--top-p", "1", "--top-k", "0", "--json"),
        *("--problems", "160", *more),
    ]


@pytest.mark.slow
def test_killed_it_goes_on_and_its_probe_reads_the_model(tmp_path):
    folder = tmp_path / "run"
    first = subprocess.Popen(command(folder), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(folder.glob("samples-*.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("samples-*.npz")}
    assert 2 <= len(kept) < 10
    done = subprocess.run(command(folder), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    found = json.loads(done.stdout)
    assert found["measured"]["problems"] >= 10 and WHOLE in found["heads"]
    assert found["auto"] and 0.5 < found["costs"]["greedy"] < 1.5
    assert found["measured"]["loss"] < found["measured"]["base"]
    probe = Probe.of(folder / "cot_engine.probe")
    assert probe.digest and probe.width == 256
    other = subprocess.run(
        command(folder, "--responses", "3"), capture_output=True, text=True, timeout=300
    )
    assert other.returncode and "made otherwise" in other.stderr and "Traceback" not in other.stderr
