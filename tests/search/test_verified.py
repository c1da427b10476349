"""Selections by a scorer's numbers, what is asked for if it can be paid, and going back."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_engine import Expand, Retrace, Score, Select, Task, normalise_answer, settled
from cot_engine.core.events import Cut, Judged, Notice, Retraced, Scored, Selected
from cot_engine.errors import InputError, StrategyError
from cot_engine.search.budget import Budget
from cot_engine.search.session import Settings
from cot_engine.testing import ScriptedBackend, solve_scripted


class Numbers:
    """A verifier that gives what is told of each text, or a digest of it; it counts."""

    def __init__(self, told=None, scale="probability"):
        self.told, self.scale, self.asked = told, scale, 0

    def of(self, chain):
        return self.told(chain) if self.told else random.Random(chain.text).random()

    async def score(self, chains, case, ask):
        self.asked += len(chains)
        return [self.of(chain) for chain in chains]


def run(body, verifier=None, **more):
    """A search by a strategy of one generator function; `verifier` is every scorer."""

    @dataclass(frozen=True)
    class Mine:
        def search(self, task: Task):
            return (yield from body(task))

    verifier = verifier or Numbers()
    return solve_scripted(Mine(), scorers=lambda name: verifier, **more)


def whole(n, **select):
    def body(task):
        grown = yield Expand(task.start, until="end", n=n)
        beam = yield Select(grown, about="whole", by="auto", **select)
        return beam[0]

    return body


def events(answer, kind):
    return [event for event in answer.trace if isinstance(event, kind)]


def test_a_scorer_decides_and_nothing_is_judged():
    verifier = Numbers()
    answer = run(whole(6), verifier)
    (selected,), (scored,) = events(answer, Selected), events(answer, Scored)
    assert selected.by == scored.scorer == "likelihood" and not events(answer, Judged)
    by_number = sorted(selected.ranking, key=lambda id: -scored.scores[id])
    assert list(selected.ranking) == by_number and answer.chain.id == by_number[0]
    worst = run(whole(6), Numbers(lambda chain: 1 - verifier.of(chain)))
    assert worst.chain.id == by_number[-1], "a verifier that is wrong way round is felt"


def test_who_stands_in_is_named_and_why_is_said_once():
    class Silent:
        async def score(self, chains, case, ask):
            raise InputError("It has no voice.")

    def body(task):
        grown = yield Expand(task.start, until="end", n=3)
        yield tuple(Score((chain,), "mine") for chain in grown)
        yield Score(grown, "mine")
        return (yield Select(grown, by="mine"))[0]

    answer = run(body, Silent())
    assert [e.text for e in events(answer, Notice) if "no voice" in e.text] == [
        "Scored by likelihood: mine could not. It has no voice."
    ]
    assert {e.scorer for e in events(answer, Scored)} == {"likelihood"}
    assert events(answer, Selected)[0].by == "likelihood"


def test_a_faulty_candidate_loses_whatever_a_scorer_gives_it():
    texts = iter(["no tags at all", "<SUMMARY>s</SUMMARY><REASONING>r</REASONING>"])
    good = "<SUMMARY>s</SUMMARY><REASONING>r</REASONING><CONCLUSION>1</CONCLUSION>"
    backend = ScriptedBackend(lambda request, seed: next(texts, good))
    verifier = Numbers(lambda chain: float("<CONCLUSION>1" not in chain.text))
    answer = run(whole(3), verifier, backend=backend)
    assert answer.text == "1" and set(events(answer, Selected)[0].unjudged) == {"r.0", "r.1"}


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.35, 0.5, 0.9, 1.0]), min_size=2, max_size=6),
    keep=st.integers(1, 3),
    unsure=st.sampled_from([0.0, 0.05, 0.11, 0.3, 1.0]),
)
def test_the_judge_is_asked_only_of_those_that_are_close(numbers, keep, unsure):
    """Brute force: who could change sides if every number moved by less than half of `unsure`."""
    texts = iter(range(100))
    backend = ScriptedBackend(
        lambda request, seed: (
            f"<SUMMARY>s{next(texts)}</SUMMARY><REASONING>r</REASONING><CONCLUSION>1</CONCLUSION>"
        )
    )
    verifier = Numbers(lambda chain: numbers[int(chain.id.rpartition(".")[2])])
    answer = run(whole(len(numbers), keep=keep, unsure=unsure), verifier, backend=backend)
    (selected,) = events(answer, Selected)
    number = {f"r.{k}": value for k, value in enumerate(numbers)}
    kept = selected.kept
    met = {id for match in selected.matches for id in (match.first, match.second)}
    if keep >= len(numbers):
        assert not met and list(kept) == sorted(kept, key=lambda id: -number[id])
        return
    ranked = sorted(numbers, reverse=True)
    last, first_out = ranked[keep - 1], ranked[keep]
    for id, value in number.items():
        if value - first_out >= unsure and value > first_out:
            assert id in kept and id not in met
        elif last - value >= unsure and value < last:
            assert id not in kept and id not in met
    if last - first_out >= unsure:
        assert not met
    else:
        assert len(met) >= 2


def test_those_that_say_the_same_are_not_judged_against_each_other():
    replies = ["Red.", "the answer is red", "blue", "RED"]

    def asked(agree):
        left = iter(replies)
        backend = ScriptedBackend(
            lambda request, seed: (
                f"<SUMMARY>s {(said := next(left))}</SUMMARY><REASONING>r</REASONING>"
                f"<CONCLUSION>{said}</CONCLUSION>"
            )
        )

        def body(task):
            grown = yield Expand(task.start, until="end", n=4)
            beam = yield Select(grown, about="whole", agree=agree)
            return beam[0]

        return run(body, backend=backend)

    assert len(events(asked(False), Judged)) == 3
    (selected,) = events(asked(True), Selected)
    assert len(selected.matches) == 1 and selected.merged == {"r.0": ("r.1", "r.3")}


def test_the_one_that_stands_for_those_that_agree_is_sound_and_of_the_highest_number():
    ends = iter(["1", "1", "1</CONCLUSION><CONCLUSION>2"])  # the third repeats a stage
    backend = ScriptedBackend(
        lambda request, seed: (
            f"<SUMMARY>{seed}</SUMMARY><REASONING>r</REASONING><CONCLUSION>{next(ends)}</CONCLUSION>"
        )
    )
    given = {"r.0": 0.2, "r.1": 0.6, "r.2": 0.9}
    answer = run(whole(3, agree=True), Numbers(lambda c: given[c.id]), backend=backend)
    (selected,) = events(answer, Selected)
    assert len(selected.candidates) == 3 and answer.chain.id in ("r.1", "r.2")
    sound = not any(f.startswith("repeated") for f in answer.chain.faults)
    assert sound, "the soundest goes before the highest number"


def test_what_a_verifier_gave_is_not_asked_again():
    verifier = Numbers()

    def body(task):
        grown = yield Expand(task.start, until=task.plan.stages[0], n=3)
        yield Score(grown, "auto")
        more = yield Expand(task.start, until=task.plan.stages[0], n=2)
        numbers = yield Score((*grown, *more), "auto", probability=True)
        assert list(numbers) == [verifier.of(chain) for chain in (*grown, *more)]
        yield Score(grown, "auto", about="whole")
        beam = yield Select((*grown, *more), by="auto")
        return beam[0]

    answer = run(body, verifier)
    assert verifier.asked == 3 + 2 + 3, "about the whole is another question"
    assert len(events(answer, Scored)) == 3, "what is known is not recorded anew by a selection"


def test_a_verifier_that_cannot_leaves_a_selection_by_likelihood():
    class Broken(Numbers):
        async def score(self, chains, case, ask):
            raise InputError("It is another model's.")

    answer = run(whole(4, unsure=0.01), Broken())
    (notice,) = events(answer, Notice)
    assert "Scored by likelihood" in notice.text and "another model's" in notice.text
    assert answer.text


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        (lambda beam: Select(beam, by=3), "Select.by=3"),
        (lambda beam: Select(beam, by="nosuch"), "Select.by='nosuch'"),
        (lambda beam: Select(beam, unsure=0.1), "0 where no scorer decides"),
        (lambda beam: Select(beam, by="auto", unsure=1.5), "a difference of probabilities"),
        (lambda beam: Select(beam, by="auto", unsure=float("nan")), "a finite number"),
        (lambda beam: Select(beam, agree=1), "True or False"),
        (lambda beam: Expand(beam, until="end", optional=None), "True or False"),
        (lambda beam: Retrace(beam, "SUMMARY", 0.1, 0.2), "a stage of task.plan"),
        (lambda beam: Retrace(beam, None, 0.1, 0.2), "a stage of task.plan"),
    ],
)
def test_what_cannot_be_asked(request_of, said):
    def body(task):
        grown = yield Expand(task.start, until="end", n=2)
        yield request_of(grown)

    def scorers(name):
        if name == "nosuch":
            raise StrategyError("There is no such scorer.")
        return Numbers()

    @dataclass(frozen=True)
    class Mine:
        def search(self, task):
            return body(task)

    with pytest.raises(StrategyError, match=said):
        solve_scripted(Mine(), scorers=scorers)


def test_a_scorer_without_a_scale_decides_but_is_never_unsure():
    assert run(whole(4), Numbers(scale="any")).text
    with pytest.raises(StrategyError, match="Give it a scale"):
        run(whole(4, unsure=0.1), Numbers(scale="any"))


def test_what_is_optional_comes_without_a_budget_and_as_far_as_one_pays():
    def body(task):
        grown = yield Expand(task.start, until="end", n=1)
        more = yield Expand(task.start, until="end", n=5, optional=True)
        again = yield Expand(grown, until="end", n=5, optional=True)
        assert again == (), "a finished chain has no more children"
        came.append(len(more))
        return grown[0]

    came = []
    run(body)
    for amount in (60, 6, 4, 2):
        answer = run(body, settings=Settings(budget=Budget(amount, "calls")))
        assert answer.total.calls <= amount and answer.chain.done
        cuts = [event for event in events(answer, Cut) if event.what == "candidates"]
        assert [(c.asked, c.granted) for c in cuts] == [(5, came[-1])] * (came[-1] < 5)
    assert came == [5, 5, 5, 3, 1]

    def twice(task):
        grown = yield Expand(task.start, until="end", n=2)
        more = yield Expand(task.start, until="end", n=5, optional=True)
        none = yield Expand(task.start, until="end", n=5, optional=True)
        assert (len(more), none) == (2, ()), "the search goes on, and is not ended by it"
        return grown[1]

    assert run(twice, settings=Settings(budget=Budget(4, "calls"))).chain.id == "r.1"


def test_going_back_is_answered_with_where_it_goes_back_to_and_recorded():
    def body(task):
        first, second, *_ = task.plan.stages
        beam = yield Expand(task.start, until=first, n=2)
        grown = yield Expand(beam, until=second, n=2)
        assert (yield Retrace(grown, second, 0.1, 0.5)) == beam
        assert (yield Retrace(grown, first, 0.1, 0.5, 1, 3, 4)) == task.start
        assert (yield Retrace(beam, second, 0.1, 0.5)) == beam, "it has not come so far"
        return grown[0]

    answer = run(body)
    told = events(answer, Retraced)
    assert [event.parents for event in told] == [("r.0", "r.1"), ("r",), ("r.0", "r.1")]
    assert told[0].candidates == ("r.0.0", "r.0.1", "r.1.0", "r.1.1")
    assert (told[1].to, told[1].attempt, told[1].of) == ("SUMMARY", 3, 4)


# --- when more samples would not change the answer ------------------------------------------------

ANSWERS = st.lists(
    st.tuples(st.sampled_from(["red", "Red.", "blue", "5", ""]), st.floats(0, 1)), max_size=8
)


@given(votes=ANSWERS, stop=st.floats(0.01, 1), doubt=st.floats(0, 2), left=st.integers(0, 8))
def test_settled_is_the_leaders_share_recomputed_from_scratch(votes, stop, doubt, left):
    totals: dict[str, float] = {}
    for text, weight in votes:
        totals[normalise_answer(text)] = totals.get(normalise_answer(text), 0.0) + weight
    if set(totals) != {""}:
        totals.pop("", None)
    texts, weights = [text for text, _ in votes], [weight for _, weight in votes]
    said = settled(texts, stop, weights, doubt, left)
    best, *others = sorted(totals.values(), reverse=True) or [0.0]
    share = best / (sum(totals.values()) + doubt) if sum(totals.values()) + doubt else 0.0
    certain = best - max(others, default=0.0) > left
    if abs(share - stop) > 1e-9 and (not others or abs(best - max(others) - left) > 1e-9):
        assert said == bool(totals and (share >= stop or certain))


@given(votes=ANSWERS, more=ANSWERS)
def test_what_is_certain_is_not_changed_by_what_is_left(votes, more):
    from cot_engine import majority

    texts, weights = [text for text, _ in votes], [weight for _, weight in votes]
    if settled(texts, 1.0, weights, doubt=1e9, left=len(more)):
        later = [text for text, _ in more], [weight for _, weight in more]
        both = texts + later[0]
        before = normalise_answer(texts[majority(texts, weights)[0]])
        after = normalise_answer(both[majority(both, weights + later[1])[0]])
        assert before == after or before == ""


@given(votes=ANSWERS, stop=st.floats(0.01, 1), doubt=st.floats(0, 2))
def test_more_doubt_and_a_higher_stop_never_settle_earlier(votes, stop, doubt):
    texts, weights = [text for text, _ in votes], [weight for _, weight in votes]
    if not settled(texts, stop, weights, doubt):
        assert not settled(texts, min(1.0, stop + 0.1), weights, doubt)
        assert not settled(texts, stop, weights, doubt + 0.1)
