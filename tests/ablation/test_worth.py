"""The worth of candidates: continuations equal what the model writes from scratch, and are paid
for by nobody else."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, replace

import pytest

from cot_engine import Engine, RunConfig
from cot_engine.ablation.worth import continued, selections, stages_of
from cot_engine.core.boundaries import Until
from cot_engine.core.events import Selected
from cot_engine.core.grammar import conclusion, read
from cot_engine.core.problem import Problem
from cot_engine.core.requests import GREEDY, Generate, Sampling
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import ConfigError
from cot_engine.judging import prompts
from cot_engine.questions.data import load_data
from cot_engine.testing import ScriptedBackend, staged_reply


@dataclass(frozen=True)
class Digit:
    """An item of the scripted model: right if the conclusion is `answer`."""

    id: str = "p"
    answer: str = "0"

    def problem(self) -> Problem:
        return Problem(self.id, "How many are there?")

    def grade(self, answer: str) -> float:
        return float(answer == self.answer)

    def facts(self, stage: str, text: str) -> float | None:
        return float("2" in text) if stage == "SUMMARY" else None


def config(strategy="stage-beam", n=4, **more) -> RunConfig:
    return RunConfig(strategy=strategy, parameters={"n": n}, judge="random", **more)


def solved(engine, item, config, rollouts=0):
    async def both():
        answer = await engine.asolve(item.problem(), config=config)
        known = await selections(
            answer.trace, item, engine=engine, config=config, rollouts=rollouts
        )
        return answer, known

    return asyncio.run(both())


def test_an_answer_is_worth_its_score_and_nothing_is_generated():
    backend = ScriptedBackend()
    answer, [only] = solved(Engine(backend), Digit(), config("best-of-n", 16))
    [held] = [e for e in answer.trace if isinstance(e, Selected)]
    chains = answer.trace.chains()
    assert only.stage == "whole" and only.candidates == held.candidates
    assert only.kept == held.kept and only.facts == {}
    assert only.worth == {
        name: float(conclusion(chains[name].text, DEFAULT_PLAN) == "0") for name in held.candidates
    }
    assert set(only.worth.values()) == {0.0, 1.0}, "or the test shows nothing"


def test_without_continuations_the_worth_of_a_stage_is_unknown():
    _, known = solved(Engine(ScriptedBackend()), Digit(), config(mode="trained"))
    assert [s.stage for s in known] == ["SUMMARY", "REASONING", "CONCLUSION"]
    assert [bool(s.worth) for s in known] == [False, False, True]
    assert [bool(s.facts) for s in known] == [True, False, False]
    assert set(known[0].facts) == set(known[0].candidates)


def test_a_vote_is_no_selection():
    answer, known = solved(Engine(ScriptedBackend()), Digit(), config("majority"), 1)
    assert known == () and answer.text


@pytest.mark.parametrize("mode", ["trained", "prompted"])
def test_continuations_need_the_engine_and_its_configuration(mode):
    engine, item, run = Engine(ScriptedBackend()), Digit(), config(mode=mode)
    answer, _ = solved(engine, item, run)
    for missing in ({"engine": None}, {"config": None}):
        given = {"engine": engine, "config": run} | missing
        with pytest.raises(ConfigError, match="engine and the configuration"):
            asyncio.run(selections(answer.trace, item, rollouts=1, **given))


def unfinished(trace):
    """Every unfinished candidate once, by text, in order: those that a search continues."""
    chains = trace.chains()
    names = [n for e in trace if isinstance(e, Selected) for n in e.candidates]
    first = {}
    for name in names:
        if not chains[name].done:
            first.setdefault(chains[name].text.strip(), chains[name])
    return list(first.values())


def written(engine, problem, run, chain, seeds, sampling):
    """The ends of a chain, asked of the model afresh, in a scope of its own."""
    plan = DEFAULT_PLAN.fit(len(problem.images))
    prompt = prompts.answer_prompt(problem, plan, "trained", "normal")
    request = Generate(
        "fresh", prompt, chain.segments, Until((plan.last.close,)), seeds, 2000, sampling
    )
    generated = asyncio.run(engine.backend.generate(request))
    engine.backend.release("fresh")
    return [chain.text + g.text for g in generated.generations]


def seeds_of(run, problem, chain, n):
    """As documented: from a digest of the run's seed, the problem and the chain's path."""

    def digest(text):
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1

    seed = digest(f"continued|{run.seed}")
    return tuple(digest(f"{seed}|{problem.id}|{chain.id}.{i}") for i in range(n))


@pytest.fixture(scope="module")
def bundled():
    with Engine.from_pretrained() as engine:
        yield engine


@pytest.mark.parametrize("rollouts", [1, 3])
def test_continuations_equal_what_is_written_from_scratch(bundled, rollouts):
    right = set()
    for item in load_data("scenes/val", n=2, seed=3).items:
        run = config(n=3, mode="trained", temperature=1.4, top_p=1.0, top_k=0)
        answer, known = solved(bundled, item, run, rollouts)
        problem, chains = item.problem(), answer.trace.chains()
        plan = answer.trace.started.plan
        worth = {}
        # One that went astray is led back by force, which is the search's own matter.
        for chain in (c for c in unfinished(answer.trace) if not c.faults):
            sampling = GREEDY if rollouts == 1 else Sampling(1.4, 1.0, 0)
            seeds = seeds_of(run, problem, chain, rollouts)
            texts = written(bundled, problem, run, chain, seeds, sampling)
            if all("CONCLUSION" in read(text, plan).contents for text in texts):
                scores = [item.grade(conclusion(text, plan)) for text in texts]
                worth[chain.text.strip()] = sum(scores) / rollouts
        assert worth
        for selection in known:
            assert set(selection.worth) == set(selection.candidates)
            for name, value in selection.worth.items():
                text = chains[name].text.strip()
                if text in worth:
                    assert value == worth[text]
                    right.add(value)
    assert len(right) > 1, "or the test shows nothing"


def test_equal_texts_share_their_continuations_and_others_pay_nothing():
    backend = ScriptedBackend()
    engine, item, run = Engine(backend), Digit(), config(n=8, mode="trained")
    alone = Engine(ScriptedBackend()).solve(item.problem(), config=run)
    answer, known = solved(engine, item, run, 3)
    assert answer.trace.canonical() == alone.trace.canonical() and answer.usage == alone.usage
    texts = unfinished(answer.trace)
    names = {name for s in known for name in s.candidates}
    assert len(texts) < len([n for n in names if not answer.trace.chains()[n].done])
    ends, usage = asyncio.run(continued(engine, item.problem(), run, texts, 3))
    assert usage.calls == 3 * len(texts) and usage.decoded > 0
    assert {len(chains) for chains in ends.values()} == {3}
    assert all(c.done and c.parent == name for name, cs in ends.items() for c in cs)
    by_text = {}
    for selection in known:
        for name, value in selection.worth.items():
            by_text.setdefault(answer.trace.chains()[name].text, set()).add(value)
    assert all(len(values) == 1 for values in by_text.values())


def test_they_are_the_same_every_time_and_follow_the_seed():
    def worths(seed):
        engine, run = Engine(ScriptedBackend()), config(mode="trained", seed=seed)
        answer = engine.solve(Digit().problem(), config=config(mode="trained"))
        return asyncio.run(selections(answer.trace, Digit(), engine=engine, config=run, rollouts=3))

    assert worths(0) == worths(0) != worths(1)


def test_a_budget_does_not_bind_them():
    engine = Engine(ScriptedBackend())
    run = config(mode="trained", budget="300 tokens")
    _, known = solved(engine, Digit(), run, 2)
    assert all(set(s.worth) == set(s.candidates) for s in known)


@pytest.mark.parametrize("mode", ["trained", "prompted"])
def test_a_model_that_ends_its_turn_is_asked_for_an_answer(mode):
    def script(request, seed):
        forced = "".join(s.text for s in request.prefix).endswith("<CONCLUSION>")
        return "0</CONCLUSION>" if forced else staged_reply(request, seed).split("<REASON")[0]

    engine = Engine(ScriptedBackend(script=script))
    _, known = solved(engine, Digit(), config(mode=mode), 1)
    assert known[0].stage == "SUMMARY" and set(known[0].worth.values()) == {1.0}


def test_selections_are_counted_under_the_stage_that_was_asked_for():
    """Even where no candidate wrote it; sentences under the stage they close, or none."""
    astray = Engine(ScriptedBackend(script=lambda request, seed: "no tags at all"))
    answer = astray.solve(Digit().problem(), config=config(mode="trained"))
    assert set(stages_of(answer.trace)) <= {"SUMMARY", "REASONING", "CONCLUSION"}

    def long(request, seed):
        return staged_reply(request, seed).replace("About", "It is. About")

    sentences = Engine(ScriptedBackend(script=long))
    run = config("sentence-beam", mode="trained")
    stages = stages_of(sentences.solve(Digit().problem(), config=run).trace)
    assert {"sentence", "SUMMARY"} <= set(stages)


def test_nothing_to_continue_costs_nothing():
    run = replace(config(), mode="trained")
    assert asyncio.run(continued(Engine(ScriptedBackend()), Digit().problem(), run, [], 2))[0] == {}
