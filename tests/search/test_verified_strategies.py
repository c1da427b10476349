"""The strategies that a verifier leads: what each asks for, its parameters, and that it is felt."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from cot_engine_strategies.best_of_n import BestOfN
from cot_engine_strategies.diverse import Diverse
from cot_engine_strategies.greedy import Greedy
from cot_engine_strategies.lookahead import Lookahead
from cot_engine_strategies.particle import Particle, resampled
from cot_engine_strategies.retrace import RetraceBeam
from cot_engine_strategies.stage_beam import StageBeam
from cot_engine_strategies.swires import Swires
from cot_engine_strategies.weighted_vote import WeightedVote
from golden import check_golden
from hypothesis import given
from hypothesis import strategies as st
from trees import tree

from cot_engine import ConfigError, Problem, conclusion, load_image, majority, normalise_answer
from cot_engine.core.events import Growing, Grown, Judged, Retraced, Scored, Selected
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.errors import StrategyError
from cot_engine.report.thresholds import calibrated
from cot_engine.search.budget import Budget
from cot_engine.search.session import Settings
from cot_engine.testing import ScriptedBackend, check_strategy, solve_scripted


class Digest:
    """A verifier made of arithmetic; `up` turns it round, `scale` says what its numbers are."""

    def __init__(self, up=True, scale="probability"):
        self.up, self.scale = up, scale

    async def score(self, chains, case, ask):
        numbers = [random.Random(chain.text).random() for chain in chains]
        return numbers if self.up else [1 - number for number in numbers]


def picture():
    from PIL import Image

    return load_image(Image.new("RGB", (8, 8), (200, 30, 30)))


SEEN = Problem("seen", "How many are there?", (picture(),))


def run(strategy, *, up=True, problem=SEEN, scorer=None, **more):
    scorer = scorer or Digest(up)
    return solve_scripted(strategy, problem=problem, scorers=lambda name: scorer, **more)


def events(answer, kind):
    return [event for event in answer.trace if isinstance(event, kind)]


STRATEGIES = {
    "weighted-vote": WeightedVote(),
    "weighted-vote-stop": WeightedVote(stop=0.5),
    "best-of-n-verifier": BestOfN(verifier="auto", unsure=0.1, agree=True),
    "best-of-n-stop": BestOfN(n=8, stop=0.5),
    "stage-beam-verifier": StageBeam(keep=2, verifier="auto", unsure=0.1, agree=True),
    "stage-beam-stop": StageBeam(verifier="auto", stop=0.7, widths="4,4,2,2"),
    "swires": Swires(threshold=0.9),
    "swires-online": Swires(),
    "retrace": RetraceBeam(n=3, keep=2, threshold=0.95, place=2, at="CAPTION", back="SUMMARY"),
    "particle": Particle(),
    "diverse": Diverse(),
    "diverse-judged": Diverse(verifier=None),
    "lookahead": Lookahead(n=2, keep=2),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_search_tree(name):
    check_golden(f"search/strategy-{name}.txt", tree(run(STRATEGIES[name]).trace))


@pytest.mark.parametrize("name", STRATEGIES)
def test_they_conform_with_other_parameters(name):
    strategy = STRATEGIES[name]
    if name == "retrace":  # a plan of one stage has none of these
        strategy = RetraceBeam(n=3, keep=2, threshold=0.95, place=2)
    check_strategy(strategy)


LED = [name for name in STRATEGIES if name != "diverse-judged"]  # by a verifier


@pytest.mark.parametrize("name", LED)
def test_a_verifier_the_wrong_way_round_changes_who_wins(name):
    """The control: a strategy that would not listen to its verifier gives the same both ways."""
    problems = [Problem(f"p{k}", "How many are there?", SEEN.images) for k in range(4)]
    ways = [[run(STRATEGIES[name], up=up, problem=p).chain.text for p in problems] for up in (1, 0)]
    assert ways[0] != ways[1]


@pytest.mark.parametrize("unit", ["new tokens", "calls", "flops"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_budget_that_ends_anywhere_leaves_an_answer(name, unit):
    free = run(STRATEGIES[name])
    whole = Budget(1, unit).of(free.total)
    for share in (0.35, 0.55, 0.75, 0.95):
        budget = Budget(max(60 if unit == "new tokens" else 4, round(whole * share)), unit)
        if unit == "flops":
            budget = Budget(max(90_000.0, whole * share), unit)
        answer = run(STRATEGIES[name], settings=Settings(budget=budget))
        assert answer.text and answer.chain.done and budget.of(answer.total) <= budget.amount


@pytest.mark.parametrize("name", STRATEGIES)
def test_whatever_the_plan(name):
    strategy = STRATEGIES[name]
    for stages in (DEFAULT_PLAN.stages[-1:], DEFAULT_PLAN.stages[2:], DEFAULT_PLAN.stages):
        plan = Plan(stages)
        for problem in (SEEN, Problem("blind", "How many?")):
            if name == "retrace" and (len(stages) < 4 or not problem.images):
                with pytest.raises(StrategyError, match=r"at is 'CAPTION', and the stages of this"):
                    run(strategy, problem=problem, settings=Settings(plan=plan))
                continue
            answer = run(strategy, problem=problem, settings=Settings(plan=plan))
            assert answer.text and answer.chain.done


# --- each what it is for -------------------------------------------------------------------------


def test_a_vote_may_begin_with_the_likeliest_response():
    """That one alone is greedy; the others are the samples that there would have been."""
    plain, first = run(WeightedVote(n=4)), run(WeightedVote(n=4, greedy=True))
    asked = [event for event in events(first, Growing)]
    assert [(event.parents, event.n) for event in asked] == [(("r",), 1), (("r",), 3)]
    texts = [[c.text for e in events(each, Grown) for c in e.chains] for each in (plain, first)]
    assert texts[0][1:] == texts[1][1:] and texts[0][0] != texts[1][0]
    assert texts[1][0] == run(Greedy()).chain.text
    settled = run(WeightedVote(n=4, greedy=True, stop=0.1, doubt=0.0))
    assert [event.n for event in events(settled, Growing)] == [1]


def test_the_vote_is_weighted_as_majority_says_and_asked_for_in_rounds():
    for k in range(6):
        problem = Problem(f"v{k}", "How many are there?", SEEN.images)
        free = run(WeightedVote(n=8), problem=problem)
        (scored,) = events(free, Scored)
        (grown,) = events(free, Grown)
        assert scored.about == "whole" and scored.probability
        texts = [conclusion(chain.text, DEFAULT_PLAN) for chain in grown.chains]
        weights = [scored.scores[chain.id] for chain in grown.chains]
        agreeing = majority(texts, weights)
        assert free.chain.id == f"r.{max(agreeing, key=lambda i: weights[i])}"
        # With a stop: the first that a recomputed share stops at, and the same responses till then.
        stopped = run(WeightedVote(n=8, stop=0.6, round=2), problem=problem)
        seen = [c.text for event in events(stopped, Grown) for c in event.chains]
        assert seen == [chain.text for chain in grown.chains][: len(seen)]
        for count in (2, 4, 6, 8):
            share: Counter[str] = Counter()
            for text, weight in zip(texts[:count], weights[:count], strict=True):
                share[normalise_answer(text)] += weight
            (_, first), (_, second) = [*share.most_common(2), ("", 0.0)][:2]
            if first >= 0.6 * (share.total() + 0.35) or first - second > 8 - count:
                break
        assert len(seen) == count
        assert [e.n for e in events(stopped, Growing)] == [2] * (count // 2)


def test_a_stop_that_is_never_reached_takes_all_and_a_vote_that_is_decided_does_not():
    def votes(*answers):
        left = iter(enumerate(answers))
        backend = ScriptedBackend(
            lambda request, seed: (
                "<SUMMARY>s{}</SUMMARY><REASONING>r</REASONING><CONCLUSION>{}</CONCLUSION>".format(
                    *next(left)
                )
            )
        )

        class Sure:
            scale = "probability"

            async def score(self, chains, case, ask):
                return [1.0] * len(chains)

        strategy = WeightedVote(n=len(answers), stop=1.0, round=1)
        answer = run(strategy, problem=Problem("b", "?"), backend=backend, scorer=Sure())
        return answer.text, sum(len(e.chains) for e in events(answer, Grown))

    assert votes("a", "b", "a", "b", "a") == ("a", 5)
    assert votes("a", "a", "a", "b", "b") == ("a", 3), "two more could not overtake three"


def test_fill_goes_on_until_the_budget_or_the_stop():
    budget = Settings(budget=Budget(30, "calls"))
    many = run(WeightedVote(n=2, fill=True), settings=budget)
    assert many.total.calls == 30
    few = run(WeightedVote(n=2, fill=True, stop=0.4), settings=budget)
    assert few.total.calls < 30 and few.left == 30 - few.total.calls


def test_best_of_n_that_stops_judges_nothing_and_else_judges_what_differs():
    stopped = run(BestOfN(n=8, stop=0.3))
    assert not events(stopped, Judged) and stopped.total.calls < 8
    whole = run(BestOfN(n=4, stop=1.0, agree=True))
    answers = {
        normalise_answer(conclusion(c.text, DEFAULT_PLAN))
        for event in events(whole, Grown)
        for c in event.chains
    }
    assert len(events(whole, Judged)) == len(answers) - 1 > 0


def test_widths_are_for_the_last_stages_and_narrow():
    def widths(problem, text, **more):
        return [e.n for e in events(run(StageBeam(widths=text, **more), problem=problem), Growing)]

    blind = Problem("blind", "How many?")
    assert widths(SEEN, "4,4,2,1") == [4, 4, 2, 1]
    assert widths(blind, "4,4,2,1") == [4, 2, 1], "without a picture there is a stage less"
    assert widths(SEEN, "3 1") == [3, 3, 3, 1]


def test_a_beam_stops_growing_a_stage_when_its_verifier_is_content():
    free, stopped = run(StageBeam(n=6)), run(StageBeam(n=6, stop=0.6, round=2))
    assert stopped.total.calls < free.total.calls
    for grown in events(stopped, Scored)[:-1]:
        assert grown.probability
    never = run(StageBeam(n=6, stop=1.0, round=6))
    assert next(e.n for e in events(never, Growing)) == 6
    alone = ScriptedBackend(lambda request, seed: "<CONCLUSION>1</CONCLUSION>")
    plan = Settings(plan=Plan(DEFAULT_PLAN.stages[-1:]))
    same = run(StageBeam(n=6, stop=1.0), problem=Problem("b", "?"), backend=alone, settings=plan)
    assert same.total.calls == 2, "all say the same"


def test_a_beam_by_its_verifier_judges_nothing_but_what_is_unsure():
    by = run(StageBeam(verifier="auto"))
    assert not events(by, Judged) and [e.by for e in events(by, Selected)] == ["likelihood"] * 4
    unsure = [len(events(run(StageBeam(verifier="auto", unsure=u)), Judged)) for u in (0.2, 1.0)]
    assert 0 < unsure[0] < unsure[1]
    judged = len(events(run(StageBeam()), Judged))
    assert unsure[1] == judged, "unsure of everything, it is the tournament"


def test_swires_goes_back_below_its_threshold_and_at_most_so_often():
    never = run(Swires(threshold=0.0))
    assert [(e.unit, e.n) for e in events(never, Growing)] == [
        ("SUMMARY", 1),
        ("CAPTION", 4),
        ("REASONING", 2),
        ("CONCLUSION", 1),
    ]
    assert [len(e.kept) for e in events(never, Selected)] == [2, 3, 1]
    always = run(Swires(threshold=1.0, rounds=3))
    told = events(always, Retraced)
    assert [(e.to, e.place, e.attempt, e.of) for e in told] == [
        ("CAPTION", 2, 2, 3),
        ("CAPTION", 2, 3, 3),
    ]
    text = {c.id: c.steps[0].text for e in events(always, Grown) for c in e.chains}

    def path(id):
        return tuple(text[".".join(id.split(".")[:k])] for k in range(2, 2 + id.count(".")))

    numbers, second = {}, []
    for event in events(always, Scored)[1::2]:
        numbers |= {path(id): number for id, number in event.scores.items()}
        second.append(sorted(numbers.values())[-2])
    assert [e.score for e in told] == second[:2], "of different ones: what is written twice is one"
    assert not events(run(Swires(threshold=1.0, rounds=1)), Retraced)
    last = events(always, Selected)[-2]
    assert len(last.candidates) == 12 and len(last.kept) == 3, "the best of all rounds go on"


def test_online_is_what_another_round_promises():
    for k in range(8):
        answer = run(Swires(), problem=Problem(f"o{k}", "How many are there?", SEEN.images))
        captions = [list(e.scores.values()) for e in events(answer, Scored)[::2]]
        for at, told in enumerate(events(answer, Retraced), 1):
            seen = [number for each in captions[:at] for number in each]
            assert (
                told.threshold == pytest.approx(sum(seen) / len(seen))
                and told.score < told.threshold
            )


def test_a_threshold_on_the_verifiers_own_scale():
    any_scale = Digest(scale="any")
    with pytest.raises(StrategyError, match="Give it a scale"):
        run(Swires(threshold=0.5), scorer=any_scale)
    assert run(Swires(threshold=2.5, raw=True), scorer=any_scale).text
    assert len(events(run(Swires(threshold=-3, raw=True), scorer=any_scale), Retraced)) == 0


def test_retrace_goes_back_to_any_stage():
    strategy = RetraceBeam(n=2, threshold=1.0, at="REASONING", back="SUMMARY", rounds=2)
    answer = run(strategy)
    units = [e.unit for e in events(answer, Growing)]
    assert units == [*["SUMMARY", "CAPTION", "REASONING"] * 2, "CONCLUSION"]
    (told,) = events(answer, Retraced)
    assert (told.to, told.parents) == ("SUMMARY", ("r",))
    ended = run(RetraceBeam(n=2, threshold=1.0, at="CONCLUSION", back="CONCLUSION", rounds=3))
    assert [e.unit for e in events(ended, Growing)][-3:] == ["CONCLUSION"] * 3 and ended.chain.done


@given(
    weights=st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=9),
    n=st.integers(1, 12),
)
def test_copies_are_the_shares_rounded(weights, n):
    copies, total = resampled(weights, n), sum(weights)
    assert sum(copies) == n
    for weight, many in zip(weights, copies, strict=True):
        if total > 0:
            share = weight / total * n
            assert share - 1 - 1e-6 < many < share + 1 + 1e-6 and (weight or not many)


def test_beams_do_not_meet_until_the_end():
    answer = run(Diverse(n=2, beams=3))
    for event in events(answer, Selected)[3:]:
        assert len({id.rpartition(".")[0] for id in event.candidates}) == 1
    assert len({e.chains[0].id.split(".")[1] for e in events(answer, Grown)[-1:]}) == 1
    begun = {c.id.split(".")[1] for e in events(answer, Grown)[-1:] for c in e.chains}
    assert len(begun) == 3, "three beams to the end, whatever the verifier thinks of them"


def test_a_stage_is_chosen_by_its_greedy_conclusion():
    answer = run(Lookahead(n=3))
    backend = ScriptedBackend()
    run(Lookahead(n=3), backend=backend)
    greedy = [r for r in backend.requests if r.sampling.greedy]
    assert len(greedy) == 9, "three candidates of three stages: the last one is its own end"
    for event in events(answer, Scored):
        assert event.about == "whole"
    first = events(answer, Selected)[0]
    assert answer.chain.id.startswith(first.kept[0].rpartition(".")[0])


# --- what will not do ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: WeightedVote(stop=0.0), "stop is 0.0. It must be a number above 0, at most 1"),
        (lambda: WeightedVote(stop=1.2), "stop is 1.2"),
        (lambda: WeightedVote(stop=float("nan")), "stop is nan"),
        (lambda: WeightedVote(round=0), "round is 0"),
        (lambda: WeightedVote(doubt=-1), "doubt is -1"),
        (lambda: BestOfN(stop=-0.1), "stop is -0.1"),
        (lambda: BestOfN(unsure=0.1), "unsure is 0.1, and there is no verifier"),
        (lambda: BestOfN(verifier="auto", unsure=2), "unsure is 2"),
        (lambda: StageBeam(stop=2), "stop is 2"),
        (lambda: StageBeam(unsure=0.1), "there is no verifier"),
        (lambda: StageBeam(widths="4,zwei"), "widths is '4,zwei'"),
        (lambda: StageBeam(widths="4,0"), "A width is 0"),
        (lambda: StageBeam(widths=","), "widths is ','"),
        (lambda: StageBeam(n=2, keep=3), "keep is 3, n is 2"),
        (lambda: Swires(rounds=0), "rounds is 0"),
        (lambda: Swires(n=1), "keep is 2, n is 1"),
        (lambda: Swires(hold=5), "hold is 5, and there are 4"),
        (lambda: Swires(threshold="onlin"), "threshold is 'onlin'"),
        (lambda: Swires(threshold=float("nan")), "threshold is nan"),
        (lambda: Swires(threshold=2.0), "threshold is 2.0. It must be a number from 0 to 1"),
        (lambda: RetraceBeam(threshold=-0.5), "threshold is -0.5"),
        (lambda: RetraceBeam(rounds=0), "rounds is 0"),
        (lambda: RetraceBeam(place=5), "place is 5, n is 4"),
        (lambda: RetraceBeam(threshold="x"), "threshold is 'x'"),
        (lambda: Particle(n=0), "n is 0"),
        (lambda: Diverse(beams=0), "beams is 0"),
        (lambda: Lookahead(n=1, keep=2), "keep is 2, n is 1"),
    ],
)
def test_what_cannot_be_is_explained(make, said):
    with pytest.raises(ConfigError) as error:
        make()
    assert said in str(error.value)


def test_stages_that_there_are_not_are_named():
    with pytest.raises(StrategyError, match=r"back is 'CAPTOIN', and the stages of this problem"):
        run(RetraceBeam(back="CAPTOIN"))
    with pytest.raises(StrategyError, match=r"'CONCLUSION', which comes after 'CAPTION'"):
        run(RetraceBeam(at="CAPTION", back="CONCLUSION"))


@pytest.mark.parametrize("name", LED)
def test_a_verifier_that_gives_no_number_is_named(name):
    class NaN:
        scale = "probability"

        async def score(self, chains, case, ask):
            return [float("nan")] * len(chains)

    with pytest.raises(StrategyError, match="gave the score nan"):
        run(STRATEGIES[name], scorer=NaN())


def test_a_threshold_is_calibrated_on_recorded_searches():
    problems = [Problem(f"c{k}", "How many are there?", SEEN.images) for k in range(12)]
    traces = [run(Swires(threshold=0.0, rounds=1), problem=problem).trace for problem in problems]
    numbers = [n for t in traces for e in list(events_of(t))[1:2] for n in e.scores.values()]
    for quantile in (0.2, 0.6, 0.9):
        least = calibrated(traces, "REASONING", quantile)
        below = sum(number < least for number in numbers) / len(numbers)
        assert abs(below - quantile) <= 1.5 / len(numbers)
    least = calibrated(traces, "REASONING", 0.9)
    back = [len(events(run(Swires(threshold=least), problem=p), Retraced)) for p in problems]
    never = calibrated(traces, "REASONING", 1e-9)
    assert sum(back) > sum(
        len(events(run(Swires(threshold=never), problem=p), Retraced)) for p in problems
    )
    with pytest.raises(ConfigError, match="No candidate of SUMMARY"):
        calibrated(traces, "SUMMARY")
    with pytest.raises(ConfigError, match="quantile is 1"):
        calibrated(traces, "REASONING", 1)
    plain = run(Swires(threshold=0.0, raw=True)).trace
    with pytest.raises(ConfigError, match="likelihood, likelihood, probability"):
        calibrated([*traces, plain], "REASONING")


def events_of(trace):
    return (event for event in trace if isinstance(event, Scored))
