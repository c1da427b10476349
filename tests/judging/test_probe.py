"""The probe: what a search reads from the model's states is what was recorded to fit one on."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
from real_engine import HOT, engine, problems  # noqa: F401  (fixtures)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cot_engine import Engine
from cot_engine.core.events import Grown, Notice, Scored
from cot_engine.errors import ConfigError
from cot_engine.judging.probe import WHOLE, Head, Probe, log_sigmoid
from cot_engine.judging.profile import Profile, probe_for
from cot_engine.training.probe_fit import logits, whole_features, with_claims
from cot_engine.training.probe_samples import Recorder, Samples, _add, _Rows

STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
LAYERS, WIDTH = (2, -1), 256
MARKS = {"CAPTION": "."}


def test_the_bundled_model_says_how_sure_it_is(engine, problems):  # noqa: F811
    """As it comes along: a probe beside the weights is no part of their digest."""
    assert engine.probe is not None and engine.probe.digest == engine.backend.info.digest
    assert engine.profile.verifier == "states"
    answer = engine.solve(problems[0], strategy="greedy")
    assert 0 < answer.confidence < 1


def random_probe(seed=0, width=WIDTH, digest=""):
    """All blocks of all heads, of weights that make logits of a few units."""
    rng = np.random.default_rng(seed)
    size = len(LAYERS) * width

    def vector():
        return (rng.normal(size=size) * 0.02).astype(np.float32)

    def number():
        return rng.normal(size=1).astype(np.float32)

    heads = {}
    for tag in STAGES:
        own = {"end": vector(), "mean": vector(), "likelihood": number()}
        if tag in MARKS:
            heads[f"claim:{tag}"] = Head(0.3, {"end": vector()})
            own["claims"] = number()
        absent = {name: 0.5 for name in own}
        heads[tag] = Head(float(number()[0]), own, absent)
    ends = {f"end:{tag}": vector() for tag in STAGES}
    own = {**ends, "mean": vector(), "likelihood": number()}
    heads[WHOLE] = Head(0.1, own, {name: -0.25 for name in own})
    return Probe(LAYERS, width, heads, MARKS, digest)


def searched(engine, probe, problem, **options):  # noqa: F811
    own, engine.probe = engine.probe, probe
    try:
        return engine.solve(problem, **HOT, seed=4, **options)
    finally:
        engine.probe = own


def recorded(engine, problem, **options):  # noqa: F811
    """Every finished chain's row of a recording of the same search, by id."""
    recorder, rows, ids = Recorder(LAYERS, WIDTH, MARKS), _Rows(STAGES, 512), []
    answer = searched(engine, recorder, problem, **options)
    item = Known()
    for chain in grown(answer):
        kept = {tag: recorder.kept[number] for tag, number in chain.steps[-1].scores.items()}
        if WHOLE in kept:
            _add(rows, item, 0, chain, answer.trace.started.plan, kept, {})
            ids.append(chain.id)
    return ids, Samples(rows.arrays(), STAGES)


class Known:
    """An item of which nothing is known but that every answer is right."""

    grader = None

    def grade(self, text):
        return 1.0

    def facts(self, stage, text):
        return None


def grown(answer):
    return [c for event in answer.trace if isinstance(event, Grown) for c in event.chains]


def test_what_a_search_reads_is_what_was_recorded_to_fit_on(engine, problems):  # noqa: F811
    """Two ways from states to a number: chain by chain in the search, all rows at once in the
    fit."""
    probe, seen = random_probe(), 0
    for problem in problems[:3]:
        options = {"strategy": "majority", "n": 3}
        answer = searched(engine, probe, problem, **options)
        ids, samples = recorded(engine, problem, **options)
        chains = {chain.id: chain for chain in grown(answer)}
        for tag in (*STAGES, WHOLE):
            whole = tag == WHOLE
            blocks = whole_features(samples) if whole else with_claims(samples, probe, tag)
            says = logits(probe.heads[tag], blocks)
            for row, name in enumerate(ids):
                assert chains[name].steps[-1].scores[tag] == pytest.approx(says[row], abs=1e-3)
                seen += 1
        shuffled = replace(probe, layers=probe.layers[::-1])
        other = searched(engine, shuffled, problem, **options)
        assert all(
            a.steps[-1].scores != b.steps[-1].scores
            for a, b in zip(grown(answer), grown(other), strict=True)
        )
    assert seen >= 30


def test_each_stage_of_a_staged_search_is_read_and_the_whole_at_its_end(engine, problems):  # noqa: F811
    answer = searched(
        engine, random_probe(), problems[0], strategy="stage-beam", n=2, judge="random"
    )
    for chain in grown(answer):
        wanted = {chain.last.stage} | ({WHOLE} if chain.done else set())
        assert set(chain.last.scores) == wanted
    assert answer.confidence == pytest.approx(
        math.exp(log_sigmoid(answer.chain.last.scores[WHOLE]))
    )
    again = searched(
        engine, random_probe(), problems[0], strategy="stage-beam", n=2, judge="random"
    )
    assert again.trace.canonical() == answer.trace.canonical()


@pytest.mark.parametrize("mode", ["trained", "prompted"])
def test_sentences_and_forced_stages_are_read_too(engine, problems, mode):  # noqa: F811
    """Where a stage goes on, what there is of it; where tags are forced, each stage at its end."""
    options = {"mode": mode, "judge": "random", "n": 2}
    staged = searched(engine, random_probe(), problems[3], strategy="best-of-n", **options)
    for chain in grown(staged):
        assert chain.done and {*STAGES, WHOLE} == set(chain.last.scores)
    by_sentence = searched(engine, random_probe(), problems[3], strategy="sentence-beam", **options)
    for chain in grown(by_sentence):
        assert chain.last.stage in chain.last.scores or not chain.last.tokens
    captions = [c for c in grown(by_sentence) if c.last.stage == "CAPTION"]
    assert len({c.last.scores["CAPTION"] for c in captions}) == len({c.text for c in captions})


def test_a_probe_changes_nothing_else(engine, problems):  # noqa: F811
    with_it, without = (
        searched(engine, probe, problems[1], strategy="stage-beam", n=2, judge="self")
        for probe in (random_probe(), None)
    )
    assert with_it.text == without.text and without.confidence is None
    assert replace(with_it.total, seconds=0) == replace(without.total, seconds=0)
    written = json.dumps(without.trace.canonical())
    assert '"scores": {"CAPTION"' not in written and "confidence" not in written


@pytest.mark.parametrize("probed", [True, False])
def test_the_scorer_states_reads_it_or_likelihood_stands_in(engine, problems, probed):  # noqa: F811
    class Best:
        n = 3

        def search(self, task):
            from cot_engine import Expand, Score

            beam = yield Expand(task.start, until="end", n=3)
            numbers = yield Score(beam, "states", about="whole")
            return beam[max(range(3), key=lambda k: numbers[k])]

    answer = searched(engine, random_probe() if probed else None, problems[2], strategy=Best())
    scored = next(event for event in answer.trace if isinstance(event, Scored))
    notices = [event.text for event in answer.trace if isinstance(event, Notice)]
    if probed:
        chains = {chain.id: chain for chain in grown(answer)}
        assert scored.scores == {name: chains[name].last.scores[WHOLE] for name in scored.scores}
    assert probed != any("Scored by likelihood: states could not" in text for text in notices)


def test_a_probe_of_another_model_fails_by_name(engine, problems):  # noqa: F811
    with pytest.raises(Exception, match=r"512 numbers a place; the probe reads 128"):
        searched(engine, random_probe(width=64), problems[0], strategy="greedy")


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        (random_probe(width=64), "reads states of 64 numbers; those of 'bundled' have 256"),
        (replace(random_probe(), layers=(99, -1)), "layer 99; 'bundled' has states of 0 to 5"),
    ],
)
def test_a_probe_of_another_model_is_refused_before_anything_is_asked(tmp_path, probe, said):
    """One that does not say which weights it is for."""
    probe.write(tmp_path / "p")
    with pytest.raises(ConfigError, match=said):
        Engine.from_pretrained(probe=tmp_path / "p")


# --- the file ------------------------------------------------------------------------------------


def test_a_file_holds_all_of_it(tmp_path):
    made = random_probe(digest="abc")
    made.write(tmp_path / "p.safetensors")
    assert (tmp_path / "p.safetensors").stat().st_size < 64_000
    read = Probe.of(tmp_path / "p.safetensors")
    assert (read.layers, read.width, read.marks, read.digest) == (LAYERS, WIDTH, MARKS, "abc")
    assert read.heads.keys() == made.heads.keys()
    for name, head in made.heads.items():
        same = read.heads[name]
        assert (same.bias, dict(same.absent)) == (head.bias, dict(head.absent))
        assert all(np.array_equal(same.weights[k], head.weights[k]) for k in head.weights)


def broken(path, how):
    random_probe().write(path)
    tensors = load_file(path)
    match how:
        case "gone":
            path.unlink()
        case "no probe":
            save_file(tensors, path)
        case "text":
            path.write_text("{}")
        case "shape":
            with safe_open(path, "numpy") as file:
                about = file.metadata()
            save_file({**tensors, "CAPTION/end": np.zeros(7, np.float32)}, path, about)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("gone", "is not there"),
        ("no probe", "has no cot_engine"),
        ("text", "cannot be read"),
        ("shape", r"CAPTION/end has the shape \(7,\), not \(512,\)"),
    ],
)
def test_a_file_that_will_not_do_is_named(tmp_path, how, said):
    path = tmp_path / "p.safetensors"
    broken(path, how)
    with pytest.raises(ConfigError, match=said) as raised:
        Probe.of(path)
    assert "p.safetensors" in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layers": ["1", "-1"]}, r"layers\[0\] is \"1\", not a whole number"),
        ({"layers": [-7, -1]}, "each is a number from -1 on, and once"),
        ({"layers": [-1, -1]}, "each is a number from -1 on, and once"),
        ({"marks": {"CAPTION": ""}}, "a mark is empty"),
        ({"marks": {"CAPTION": 5}}, "marks"),
        ({"digest": 5}, "digest is 5, not a text"),
        ({"heads": {}}, "no head in it"),
        ({"heads": {"whole": {"bias": 1, "absent": {"mean": "x"}}}}, "absent"),
        ({"heads": {"whole": {"bias": -1e308}}}, "whole, bias, holds -1e\\+308"),
        ({"heads": {"whole": {"bias": 1, "absent": {"mean": 1e200}}}}, "whole, mean, holds 1e"),
    ],
)
def test_what_a_file_says_of_itself_is_read_as_strictly(tmp_path, changed, said):
    path = tmp_path / "p.safetensors"
    random_probe().write(path)
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["cot_engine"])
    save_file(load_file(path), path, {"cot_engine": json.dumps(about | changed)})
    with pytest.raises(ConfigError, match=said):
        Probe.of(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    path, probe = tmp_path / "p.safetensors", random_probe()
    probe.heads[WHOLE].weights["mean"][3] = value
    probe.write(path)
    said = "3e\\+38, and 1e\\+12 is the most" if value == 3e38 else "what is no finite number"
    with pytest.raises(ConfigError, match=f"whole/mean holds {said}"):
        Probe.of(path)


def test_a_pipe_is_no_probe_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p")
    with pytest.raises(ConfigError, match="not a regular file"):
        Probe.of(tmp_path / "p")


def test_a_probe_of_other_weights_is_left_out_or_refused(engine, tmp_path):  # noqa: F811
    info = engine.backend.info
    random_probe(digest="f" * 64).write(tmp_path / "probe.safetensors")
    profile, heard = Profile(probe="probe.safetensors"), []
    assert probe_for(info, "auto", profile, tmp_path, heard.append) is None
    assert "fitted on other weights" in heard[0] and "left out" in heard[0]
    with pytest.raises(ConfigError, match="fitted on other weights"):
        probe_for(info, tmp_path / "probe.safetensors", Profile(), tmp_path)
    assert probe_for(info, "none", profile, tmp_path) is None
    random_probe(digest=info.digest).write(tmp_path / "probe.safetensors")
    assert probe_for(info, "auto", profile, tmp_path).digest == info.digest


def test_weights_that_were_trained_on_lose_the_probe():
    kept, said = Profile(probe="p.safetensors", verifier="states").after_training()
    assert kept == Profile() and "train-verifier" in said
    kept, said = Profile(verifier="likelihood").after_training()
    assert kept == Profile(verifier="likelihood") and not said


def test_log_sigmoid_holds_for_any_logit():
    for logit in (-1e6, -5.0, 0.0, 5.0, 1e6):
        assert log_sigmoid(logit) <= 0
    assert log_sigmoid(0.0) == pytest.approx(-math.log(2))
    assert log_sigmoid(-800.0) == -800.0
