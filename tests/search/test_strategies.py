"""The strategies that come with the package: what each asks for, and how it answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cot_engine_strategies.best_of_n import BestOfN
from cot_engine_strategies.greedy import Greedy
from cot_engine_strategies.majority import Majority
from cot_engine_strategies.sentence_beam import SentenceBeam
from cot_engine_strategies.stage_beam import StageBeam

from cot_engine import plugins
from cot_engine.core.chain import Chain, Step
from cot_engine.core.events import Growing, Judged, Selected
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Segment
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.errors import ConfigError
from cot_engine.search.strategy import Expand, Select, Task
from cot_engine.testing import ScriptedBackend, check_strategy, solve_scripted

TASK = Task(Problem("p", "?"), DEFAULT_PLAN)


def asked(strategy, task: Task = TASK, done_after: int = 10**6) -> tuple[list, Chain]:
    """What a strategy yields, and returns, if every child is kept in order: no core, no model."""
    requests, search, reply = [], strategy.search(task), None
    try:
        while True:
            request = search.send(reply)
            requests.append(request)
            if isinstance(request, Select):
                reply = request.beam[: request.keep]
                continue
            step = Step("s", (Segment("s", (1,)),), "A", -1.0, 1, "stop")
            done = request.until == "end" or len(requests) >= done_after
            reply = tuple(
                child
                for chain in request.beam
                for child in (
                    [chain] if chain.done else [chain.grow(i, step, done) for i in range(request.n)]
                )
            )
    except StopIteration as end:
        return requests, end.value


@pytest.mark.parametrize("name", plugins.names("strategy"))
def test_every_strategy_conforms(name):
    check_strategy(plugins.make("strategy", name, {}))


@pytest.mark.parametrize(
    "strategy",
    [
        *(StageBeam(1), StageBeam(3, 2), BestOfN(1), Majority(1), Majority(5)),
        *(SentenceBeam(1), SentenceBeam(3, 2), SentenceBeam(2, 1, max_sentences=2)),
    ],
    ids=str,
)
def test_so_do_they_with_other_parameters(strategy):
    check_strategy(strategy)


def test_greedy_is_one_request():
    requests, chain = asked(Greedy())
    assert requests == [Expand(TASK.start, "end", 1, greedy=True)]
    assert chain.id == "r.0"


def test_greedy_neither_samples_nor_judges():
    backend = ScriptedBackend()
    answer = solve_scripted(Greedy(), backend=backend)
    assert all(request.sampling.greedy for request in backend.requests)
    assert not [e for e in answer.trace if isinstance(e, (Judged, Selected))]


def test_stage_beam_grows_and_selects_once_per_stage():
    requests, chain = asked(StageBeam(n=4))
    assert [r.until.tag for r in requests[::2]] == [s.tag for s in DEFAULT_PLAN]
    assert all(r.n == 4 for r in requests[::2])
    assert all(r.keep == 1 and r.about == "step" for r in requests[1::2])
    assert chain.id == "r.0.0.0.0"


def test_stage_beam_carries_keep_on_but_one_at_the_last():
    requests, _ = asked(StageBeam(n=4, keep=2))
    assert [len(r.beam) for r in requests] == [1, 4, 2, 8, 2, 8, 2, 8]
    assert [r.keep for r in requests[1::2]] == [2, 2, 2, 1]


def test_a_stage_may_have_a_width_of_its_own():
    stages = tuple(
        replace(s, width=w) for s, w in zip(DEFAULT_PLAN, (None, 2, None, 1), strict=True)
    )
    requests, _ = asked(StageBeam(n=3), replace(TASK, plan=Plan(stages)))
    assert [r.n for r in requests[::2]] == [3, 2, 3, 1]


def test_best_of_n_is_one_tournament_over_whole_responses():
    requests, _ = asked(BestOfN(n=3))
    assert [type(r) for r in requests] == [Expand, Select]
    assert (requests[0].until, requests[0].n) == ("end", 3)
    assert (requests[1].keep, requests[1].about) == (1, "whole")


def test_sentence_beam_goes_on_until_all_are_done():
    requests, chain = asked(SentenceBeam(n=2), done_after=5)
    grown = [r for r in requests if isinstance(r, Expand)]
    assert [r.until for r in grown] == ["sentence"] * 3 + ["end"]
    assert all(r.n == 2 for r in grown[:-1])
    assert grown[-1].beam[0].done and chain == grown[-1].beam[0]


def test_sentence_beam_ends_even_if_the_model_does_not():
    requests, chain = asked(SentenceBeam(n=2, keep=2, max_sentences=7))
    assert [r.until for r in requests if isinstance(r, Expand)] == ["sentence"] * 7 + ["end"]
    assert chain.done
    last = requests[-1]
    assert (last.keep, last.about, len(last.beam)) == (1, "whole", 2)


def replies(*texts: str):
    """A script whose k-th new response is the k-th text, whatever the seed."""
    left = list(texts)
    return lambda request, seed: left.pop(0)


def whole(reason: str, answer: str) -> str:
    return f"<SUMMARY>s</SUMMARY><REASONING>{reason}</REASONING><CONCLUSION>{answer}</CONCLUSION>"


def vote(*texts: str):
    return solve_scripted(Majority(len(texts)), backend=ScriptedBackend(replies(*texts)))


def test_the_majority_is_over_normalised_answers_and_nothing_is_judged():
    answer = vote(whole("a", "Red."), whole("b", "blue"), whole("c", "The answer is red"))
    assert answer.text in ("Red.", "The answer is red")
    assert not [e for e in answer.trace if isinstance(e, (Judged, Selected))]
    assert [e.n for e in answer.trace if isinstance(e, Growing)] == [3]


def test_equal_votes_go_to_the_likelier_and_then_to_the_first():
    texts = [whole("one word", "red"), whole("two words here", "blue")]
    forth, back = vote(*texts), vote(*texts[::-1])
    grown = [c for e in forth.trace if hasattr(e, "chains") for c in e.chains]
    likelier = max(grown, key=lambda chain: chain.likelihood())
    assert grown[0].likelihood() != grown[1].likelihood()
    assert forth.text == back.text
    assert forth.text in likelier.text

    def same(request, seed):  # equal texts are equally likely
        return whole("x", "red")

    assert solve_scripted(Majority(3), backend=ScriptedBackend(same)).chain.id == "r.0"


def test_a_response_without_an_answer_has_no_vote():
    empty = "<SUMMARY></SUMMARY>"
    assert vote(empty, empty, whole("a", "red")).text == "red"


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (StageBeam, {"n": 0}, "n is 0. It must be an integer from 1 to 1024"),
        (StageBeam, {"n": -1}, "n is -1"),
        (StageBeam, {"n": 1_000_000}, "n is 1000000"),
        (StageBeam, {"n": 2.0}, "n is 2.0"),
        (StageBeam, {"n": True}, "n is True"),
        (StageBeam, {"n": "4"}, "n is '4'"),
        (StageBeam, {"keep": 0}, "keep is 0"),
        (StageBeam, {"n": 2, "keep": 3}, "keep is 3, n is 2"),
        (BestOfN, {"n": 0}, "n is 0"),
        (Majority, {"n": 1025}, "n is 1025"),
        (SentenceBeam, {"n": 0}, "n is 0"),
        (SentenceBeam, {"keep": 3}, "keep is 3, n is 2"),
        (SentenceBeam, {"max_sentences": 0}, "max_sentences is 0"),
    ],
)
def test_parameters_out_of_range_are_refused(kind, values, said):
    with pytest.raises(ConfigError, match=said):
        kind(**values)
