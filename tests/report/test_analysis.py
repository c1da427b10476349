"""What is found in a store, against numbers worked out by hand."""

import math
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from make_store import HOSTILE_QUESTION, digest, make_run, make_store, plain, put

from cot_engine.ablation.records import CandidateRecord, SelectionRecord
from cot_engine.ablation.store import Store
from cot_engine.core.usage import Usage
from cot_engine.errors import StoreError
from cot_engine.report.analysis import analyse
from cot_engine.report.headroom import merged
from cot_engine.statistics import accuracy, holm, paired

NO_MATCH = {"match": None}
BON = {"n": 4, "fill": False}


def goal(reference=None, amount=None, unit="flops"):
    return {"unit": unit, "amount": amount, "reference": reference}


@pytest.fixture
def grid(tmp_path):
    """grid({label: plain}, problems, seeds, reference) -> (store, run), with no rows yet."""
    opened = []

    def make(cells, problems=4, seeds=(0,), reference="no such label"):
        store = Store(tmp_path / f"{len(opened)}.sqlite", create=True)
        opened.append(store)
        by_hash = {digest(cell): (label, cell) for label, cell in cells.items()}
        run = make_run(problems, seeds, by_hash, reference)
        store.begin(run)
        return store, store.run()

    yield make
    for store in opened:
        store.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store, run = make_store(tmp_path_factory.mktemp("made") / "made.sqlite", problems=24, traces=4)
    yield store, run, analyse(store, run)
    store.close()


def candidates(*answers, right="3"):
    """Whole responses; the likelier the earlier; "!" marks one that the budget cut off, "~" one
    that is malformed."""
    return tuple(
        CandidateRecord(
            f"r.{at}",
            a.strip("!~"),
            float(a.strip("!~") == right),
            -0.1 * (at + 1),
            not {*"!~"} & {*a},
            "!" in a,
        )
        for at, a in enumerate(answers)
    )


def standing(findings, label):
    return next(s for s in findings.standings if s.label == label)


# --- standings -----------------------------------------------------------------------------------


def test_a_standing_is_the_mean_over_problems_and_its_cost_the_mean_over_searches(grid):
    store, run = grid({"greedy": plain("greedy")}, problems=3, seeds=(0, 1))
    put(store, run, "greedy", 0, 0, 1.0, spent=100, judge=40)
    put(store, run, "greedy", 0, 1, 0.0, spent=200)
    put(store, run, "greedy", 1, 0, 1.0, spent=300)
    put(store, run, "greedy", 1, 1, None)
    put(store, run, "greedy", 2, 0, None)
    found = analyse(store, run)
    s = standing(found, "greedy")
    assert (s.problems, s.searches, s.failed) == (2, 5, 2)
    assert s.accuracy.estimate == 0.75  # problems 0.5 and 1; not 2 of 3 searches
    assert s.accuracy == accuracy(np.array([[1, 0], [1, np.nan], [np.nan, np.nan]]))
    assert (s.spent, s.allotted, s.left, s.seconds) == (200, None, None, 2.0)
    assert s.by_role == {"generate": pytest.approx(560 / 3), "judge": pytest.approx(40 / 3)}
    assert s.usage["generate"].decoded == 7
    assert s.usage["judge"].calls == pytest.approx(2 / 3)
    assert (found.searches, found.failed, found.missing) == (5, 2, 1)
    assert found.notes == (
        "Preliminary: 1 of 6 searches are still missing.",
        "2 of 5 searches of greedy failed and count nowhere; the first: It failed.",
    )


def test_answers_that_were_cut_are_told_of(grid):
    store, run = grid({"greedy": plain("greedy")}, problems=3)
    for item in range(3):
        why = "" if item == 1 else f"The budget of {item + 1} calls ended."
        put(store, run, "greedy", item, 0, incomplete=why)
    (told,) = [note for note in analyse(store, run).notes if "not whole" in note]
    assert told == (
        "2 of 3 searches of greedy gave an answer that is not whole and is graded as it stands;"
        " the first: The budget of 1 calls ended."
    )


def test_what_is_derived_from_whole_responses(grid):
    cells = {"bon": plain("best-of-n", BON), "votes": plain("majority", BON)}
    store, run = grid(cells, problems=3)
    put(
        store,
        run,
        "bon",
        0,
        0,
        1.0,
        spent=100,
        judge=10,
        candidates=candidates("3", "2", "2", "3."),
    )
    put(store, run, "bon", 1, 0, 0.0, spent=100, judge=10, candidates=candidates("3!", "3!", "2"))
    put(store, run, "bon", 2, 0, None)
    put(store, run, "votes", 0, 0, 1.0, spent=50, candidates=candidates("3", "2"))
    found = analyse(store, run)
    made = {s.label: (s.accuracy.estimate, s.kind, s.problems) for s in found.standings}
    assert made == {
        "bon": (0.5, "search", 2),
        "votes": (1.0, "search", 1),
        # In the first two votes each, and those for 3 are the likelier: e^-0.1 + e^-0.4 is more
        # than e^-0.2 + e^-0.3. In the second only the 2 is whole.
        "majority of bon": (0.5, "vote", 2),
        "random of bon": (pytest.approx((1 / 4 + 2 / 3) / 2), "random", 2),  # "3." scores 0 here
        "oracle of bon": (1.0, "oracle", 2),
        "random of votes": (0.5, "random", 1),
        "oracle of votes": (1.0, "oracle", 1),
    }
    vote = standing(found, "majority of bon")
    assert (vote.spent, vote.by_role, vote.matching) == (90, {"generate": 90}, "")
    assert set(vote.usage) == {"generate"}
    assert vote.seconds == 0.5  # the model's
    assert (vote.cell, vote.strategy, vote.n) == (standing(found, "bon").cell, "best-of-n", 4)


def test_one_response_has_nothing_derived(grid):
    store, run = grid({"one sample": plain("best-of-n", {"n": 1, "fill": False})})
    put(store, run, "one sample", 0, 0, candidates=candidates("3"))
    assert [s.label for s in analyse(store, run).standings] == ["one sample"]


def test_what_a_budget_broke_off_is_said_and_an_oracle_is_never_below_the_search(grid):
    beam = plain("stage-beam", BON)
    cells = {"beam": beam, "votes": plain("majority", BON, goal(digest(beam)))}
    store, run = grid(cells, reference="beam")
    for problem in range(4):
        put(store, run, "beam", problem, 0)
        cut = candidates("2!", "2!") if problem < 3 else candidates("3", "2!")
        put(store, run, "votes", problem, 0, 1.0, candidates=cut)
    found = analyse(store, run)
    assert standing(found, "oracle of votes").accuracy.estimate == 1.0
    assert standing(found, "random of votes").accuracy.estimate == 0.5 / 4
    assert found.notes[0] == (
        "In 3 of 4 searches of votes the budget cut every response off. With a smaller n fewer are"
        " sampled at once."
    )


# --- matching ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spent", "matching"),
    [(100, "matched"), (95, "matched"), (94, "unmatched"), (105, "matched"), (106, "unmatched")],
)
def test_matched_is_within_five_percent_of_the_reference_on_the_searches_of_both(
    grid, spent, matching
):
    beam = plain("stage-beam", {"n": 4})
    bon = plain("best-of-n", {"n": 4, "fill": True}, goal(digest(beam)))
    store, run = grid({"beam": beam, "bon": bon}, reference="beam")
    for problem in range(3):
        put(store, run, "beam", problem, 0, spent=100)
        put(store, run, "bon", problem, 0, spent=spent, allotted=100.0, remaining=100.0 - spent)
    put(store, run, "beam", 3, 0, spent=10_000)  # where the other has no search
    found = analyse(store, run)
    assert standing(found, "beam").matching == "reference"
    s = standing(found, "bon")
    assert (s.matching, s.allotted, s.left) == (matching, 100, 100 - spent)
    (compared,) = found.comparisons
    assert compared.ratio == pytest.approx(100 / spent)
    assert compared.matched is (matching == "matched")
    said = f"bon is not at equal compute: it spent {spent} % of what it was allotted."
    assert (said in found.notes) is (matching == "unmatched")
    assert ("times the compute" in compared.sentence) is (matching == "unmatched")


def test_a_fixed_amount_matches_in_its_own_unit(grid):
    cells = {
        "majority": plain("majority", BON, goal(amount=8.0, unit="new tokens")),
        "bon": plain("best-of-n", BON, goal(amount=8.0, unit="new tokens")),
        "beam": plain("stage-beam", BON, goal(amount=8.0, unit="new tokens")),
        "greedy": plain("greedy"),
    }
    store, run = grid(cells)
    for problem in range(4):
        put(store, run, "majority", problem, 0)  # generates 7 tokens
        put(store, run, "bon", problem, 0, judge=5, unit="new tokens", allotted=8.0, remaining=0.0)
        put(store, run, "beam", problem, 0, judge=5)
        put(store, run, "greedy", problem, 0)
    found = analyse(store, run)
    assert found.unit == "new tokens"
    assert [s.matching for s in found.standings] == ["unmatched", "matched", "matched", ""]
    assert standing(found, "bon").spent == 8  # 7 and the judge's 1
    assert standing(found, "bon").left == 0
    assert standing(found, "beam").left is None  # made with another unit, for another run
    pairs = [(c.first, c.second, c.matched) for c in found.comparisons]
    # The first that is no vote stands in for the reference.
    assert pairs == [("bon", "majority", False), ("bon", "beam", True), ("bon", "greedy", False)]
    assert "at 1.1 times the new tokens" in found.comparisons[0].sentence


def test_without_flops_spending_is_in_tokens(grid):
    """A server of unknown size counts none, and did not search for nothing."""
    store, run = grid({"beam": plain("stage-beam", BON), "greedy": plain("greedy")})
    used = {"generate": Usage(0, 10, 5, 7), "judge": Usage(0, 30, 0, 0)}
    for problem in range(4):
        put(store, run, "beam", problem, 0, usage=used)
        put(store, run, "greedy", problem, 0, usage={"generate": used["generate"]})
    found = analyse(store, run)
    assert found.unit == "tokens"
    assert [standing(found, each).spent for each in ("beam", "greedy")] == [47, 17]
    assert "at 2.8 times the tokens" in found.comparisons[0].sentence
    assert "Judging is 64 %" in " ".join(found.headline)


def test_seconds_are_those_of_the_searches(grid):
    beam = plain("stage-beam", BON)
    store, run = grid(
        {"beam": beam, "bon": plain("best-of-n", BON, goal(digest(beam), unit="seconds"))},
        reference="beam",
    )
    put(store, run, "beam", 0, 0, judge=5, seconds=4.0)
    put(store, run, "bon", 0, 0, seconds=3.9, unit="seconds", allotted=4.0, remaining=0.1)
    found = analyse(store, run)
    assert standing(found, "beam").spent == 4.0
    assert standing(found, "beam").by_role == {"generate": 0.5, "judge": 0.25}  # the model's
    assert standing(found, "bon").matching == "matched"


# --- comparisons ---------------------------------------------------------------------------------


def test_comparisons_are_of_common_problems_and_corrected_for_their_number(grid):
    beam = plain("stage-beam", {"n": 2})
    cells = {
        "greedy": plain("greedy"),
        "warm greedy": plain("greedy", temperature=0.3, detail="full"),
        "sample": plain("best-of-n", {"n": 1, "fill": False}),
        "other beam": plain("stage-beam", {"n": 3}),
        "other judge": plain("stage-beam", {"n": 2}, judge="self", rollouts=1),
        "two changes": plain("stage-beam", {"n": 2}, judge="self", tournament="swiss"),
        "bon": plain("best-of-n", {"n": 4, "fill": True}, goal(digest(beam))),
        "beam": beam,
    }
    store, run = grid(cells, problems=8, reference="beam")
    scores = {
        "beam": [1, 1, 1, 1, 1, 1, 1, None],
        "bon": [0, 0, 0, 0, 0, 0, None, 1],
        "greedy": [1, 1, 1, 0, 0, 0, 0, 1],
        "sample": [1, 1, 1, 1, 1, 1, 0, 0],
    }
    for label in cells:
        for problem, score in enumerate(scores.get(label, [1] * 8)):
            put(store, run, label, problem, 0, score)
    found = analyse(store, run)
    assert [(c.first, c.second) for c in found.comparisons] == [
        ("beam", "bon"),
        ("beam", "greedy"),  # of the same plan and detail; the other one is not its baseline
        ("beam", "sample"),
        ("beam", "other judge"),  # one change; not two, nor its n
    ]
    bon, greedy, sample, judge = found.comparisons
    assert bon.paired.problems == 6
    assert bon.paired.difference.estimate == 1
    assert bon.paired.p == 2 / 2**6
    assert greedy.paired.p == 2 / 2**4
    assert sample.paired.p == judge.paired.p == 1
    ps = [8 / 64, 6 / 16, 1, 1]
    assert [c.p for c in found.comparisons] == holm([2 / 64, 2 / 16, 1, 1]) == ps
    assert {c.family for c in found.comparisons} == {4}

    def matrix(label):
        return np.array([[math.nan if x is None else x] for x in scores[label]], float)

    assert greedy.paired == paired(matrix("beam"), matrix("greedy"))


def test_without_matching_each_cell_meets_greedy(grid):
    cells = {
        "greedy": plain("greedy"),
        "sample": plain("best-of-n", {"n": 1, "fill": False}, temperature=1.0),
        "beam": plain("stage-beam", {"n": 2}),
        "never run": plain("stage-beam", {"n": 9}),
    }
    store, run = grid(cells)
    for label in list(cells)[:3]:
        for problem in range(4):
            put(store, run, label, problem, 0, spent=250 if label == "beam" else 100)
    found = analyse(store, run)
    assert [(c.first, c.second) for c in found.comparisons] == [
        ("sample", "greedy"),
        ("beam", "greedy"),
    ]
    assert found.comparisons[1].sentence.startswith(
        "beam (at 2.5 times the compute) and greedy score the same on every one of 4 problems"
    )
    assert "never run has no finished search." in found.notes
    assert math.isnan(standing(found, "never run").accuracy.estimate)


# --- curves --------------------------------------------------------------------------------------


def test_a_curve_is_cells_that_differ_in_n_alone(grid):
    cells = {
        "beam n=4": plain("stage-beam", {"n": 4, "keep": 1}, rollouts=8),
        "beam n=10": plain("stage-beam", {"n": 10, "keep": 1}),
        "beam n=2": plain("stage-beam", {"n": 2, "keep": 1}, rollouts=8),
        "beam n=2 keep=2": plain("stage-beam", {"n": 2, "keep": 2}),
        "hot beam n=4": plain("stage-beam", {"n": 4, "keep": 1}, temperature=3.0),
        "one sample": plain("best-of-n", {"n": 1, "fill": False}),
        "best-of-n n=4 T=1": plain("best-of-n", BON),
        "greedy": plain("greedy"),
    }
    store, run = grid(cells)
    for label in cells:
        answers = ("3", "2") if label == "best-of-n n=4 T=1" else ("3",)
        put(store, run, label, 0, 0, candidates=candidates(*answers))
    found = {c.name: [(p.label, p.n) for p in c.points] for c in analyse(store, run).curves}
    whole = ("one sample", 1)
    assert found == {
        "beam": [("beam n=2", 2), ("beam n=4", 4), ("beam n=10", 10)],
        "best-of-n T=1": [whole, ("best-of-n n=4 T=1", 4)],
        "majority of best-of-n T=1": [whole, ("majority of best-of-n n=4 T=1", 4)],
        "oracle of best-of-n T=1": [whole, ("oracle of best-of-n n=4 T=1", 4)],
    }


# --- headroom ------------------------------------------------------------------------------------


def selection(stage, worth, kept, facts=None, unknown=()):
    names = tuple(worth)
    known = {name: value for name, value in worth.items() if name not in unknown}
    return SelectionRecord(stage, names, (kept,), known, facts or {})


def test_headroom_is_the_best_the_selected_and_a_random_candidate(grid):
    store, run = grid({"beam": plain("stage-beam", BON)}, problems=3, seeds=(0, 1))
    caption = {"a": 1.0, "b": 0.0}
    put(store, run, "beam", 0, 0, selections=(
        selection("REASONING", {"a": 0.5, "b": 0.25}, "b"),
        selection("CAPTION", {"a": 1.0, "b": 0.5, "c": 0.0}, "b", caption | {"c": 0.0}),
    ))  # fmt: skip
    put(store, run, "beam", 0, 1, selections=(selection("CAPTION", {"a": 0.0, "b": 0.0}, "a"),))
    put(store, run, "beam", 1, 0, selections=(selection("CAPTION", {"a": 1.0, "b": 1.0}, "a"),))
    # One whose worth is not known might be the best: nothing is said.
    unknown = selection("CAPTION", {"a": 1.0, "b": 1.0}, "a", unknown=("b",))
    put(store, run, "beam", 2, 0, selections=(unknown,))
    worth, facts, reasoning = analyse(store, run).headrooms
    assert [(h.stage, h.measure) for h in (worth, facts, reasoning)] == [
        ("CAPTION", "worth"),
        ("CAPTION", "facts"),
        ("REASONING", "worth"),
    ]
    assert worth.problems == 2
    assert worth.n == pytest.approx(7 / 3)
    # Problem 0: means over its two seeds of (1, 0.5, 0.5) and (0, 0, 0); problem 1: all 1.
    assert worth.oracle.estimate == (0.5 + 1) / 2
    assert worth.selected.estimate == worth.random.estimate == (0.25 + 1) / 2
    assert worth.taken == 0
    assert (facts.oracle.estimate, facts.selected.estimate) == (1, 0)
    assert facts.taken == pytest.approx((0 - 1 / 3) / (1 - 1 / 3))
    assert reasoning.taken == pytest.approx((0.25 - 0.375) / (0.5 - 0.375))
    assert worth.oracle == accuracy(np.array([[1.0, 0.0], [1.0, np.nan], [np.nan, np.nan]]))


def test_a_whole_response_that_was_never_finished_is_worth_what_it_says(grid):
    store, run = grid({"bon": plain("best-of-n", BON)})
    known = selection("whole", {"r.0": 1.0, "r.1": 1.0, "r.2": 0.0}, "r.0", unknown=("r.1",))
    whole = candidates("3", "2~", "2")
    put(store, run, "bon", 0, 0, selections=(known,), candidates=whole)
    (h,) = analyse(store, run).headrooms
    assert (h.n, h.oracle.estimate, h.random.estimate) == (3, 1, pytest.approx(1 / 3))


def test_where_there_is_nothing_to_take_nothing_is_taken(grid):
    beam = plain("stage-beam", BON, rollouts=2)
    store, run = grid({"beam": beam, "one": plain("stage-beam", {"n": 1})})
    put(store, run, "beam", 0, 0, selections=(selection("CAPTION", {"a": 0.5, "b": 0.5}, "a"),))
    put(store, run, "one", 0, 0, selections=(selection("CAPTION", {"a": 0.5}, "a"),))
    found = analyse(store, run)
    (h,) = found.headrooms  # of a single candidate there is no choice to speak of
    assert "No selection of beam gives anything away" in " ".join(found.headline)
    assert h.label == "beam"
    assert h.taken is None


def test_what_was_not_continued_is_not_said_to_lose_nothing(grid):
    """Of a beam without rollouts only the last stage's candidates have an answer."""
    store, run = grid({"beam": plain("stage-beam", BON)})
    unfinished = selection("CAPTION", {"a": 1.0, "b": 1.0}, "a", unknown=("a", "b"))
    last = selection("CONCLUSION", {"c": 1.0, "d": 1.0}, "c")
    put(store, run, "beam", 0, 0, selections=(unfinished, last))
    said = " ".join(analyse(store, run).headline)
    assert "Where selection loses at the stages of beam is not known" in said
    assert "anything away" not in said
    # Whole responses are all finished.
    store, run = grid({"bon": plain("best-of-n", BON)})
    whole = selection("whole", {"a": 1.0, "b": 0.0}, "b")
    put(store, run, "bon", 0, 0, selections=(whole,))
    said = " ".join(analyse(store, run).headline)
    assert "Selection loses most at whole responses of bon: 100.0 points" in said


def test_selecting_again_among_more_is_one_choice_and_another_sentence_is_another():
    first = selection("CAPTION", {"a": 1.0, "b": 0.0}, "b", {"a": 1.0})
    more = selection("CAPTION", {"b": 0.0, "c": 0.5}, "c", {"c": 0.0})
    child = selection("CAPTION", {"d": 0.25, "e": 0.0}, "d")
    whole = selection("whole", {"d": 0.25}, "d")
    assert merged((first, more, child, whole)) == [
        SelectionRecord("CAPTION", ("a", "b", "c"), ("c",), {"a": 1.0, "b": 0.0, "c": 0.5},
                  {"a": 1.0, "c": 0.0}),
        child,
        whole,
    ]  # fmt: skip


def test_a_search_that_chose_several_times_at_a_stage_counts_with_the_mean(grid):
    store, run = grid({"sentences": plain("sentence-beam", {"n": 2})})
    put(store, run, "sentences", 0, 0, selections=(
        selection("CAPTION", {"a": 1.0, "b": 0.0}, "a"),
        selection("CAPTION", {"c": 0.5, "d": 0.5}, "c"),
    ))  # fmt: skip
    (h,) = analyse(store, run).headrooms
    values = (h.oracle.estimate, h.selected.estimate, h.random.estimate, h.n)
    assert values == (0.75, 0.75, 0.5, 2)


# --- types, outcomes, conditions -----------------------------------------------------------------


def test_types_and_outcomes(grid):
    store, run = grid({"greedy": plain("greedy"), "b": plain("stage-beam")}, 5, (0, 1))
    for problem, seed, score in ((0, 0, 1.0), (0, 1, 0.0), (1, 0, 1.0), (3, 0, None)):
        put(store, run, "greedy", problem, seed, score)
    found = analyse(store, run)
    assert [(t.type, t.problems) for t in found.types] == [("count", 1), ("colour", 1)]
    assert found.types[0].accuracy == {"greedy": accuracy(np.array([[1.0, 0.0]]))}
    assert [(o.problem, o.correct) for o in found.outcomes] == [
        ("p000", {"greedy": 0.5, "b": None}),
        ("p001", {"greedy": 1.0, "b": None}),
        ("p003", {"greedy": None, "b": None}),
    ]
    assert [key.seed for key in found.outcomes[0].keys["greedy"]] == [0, 1]
    assert found.outcomes[2].question == HOSTILE_QUESTION
    assert [key.seed for key in found.outcomes[2].keys["greedy"]] == [0]  # a failed one is shown
    assert not analyse(store, run, where="type = 'count'").types


def test_a_condition_is_said_and_changes_everything_but_what_is_missing(made):
    store, run, whole = made
    found = analyse(store, run, where="type = 'count' and seed < 2")
    assert found.where == "type = 'count' and seed < 2"
    assert found.notes[0] == "Only searches with type = 'count' and seed < 2: 144 of 648."
    assert found.searches == 144
    assert {s.problems for s in found.standings} == {8}
    assert found.missing == whole.missing == 3
    assert len(found.outcomes) == 8
    assert found.commands[1].endswith("--where 'type = '\"'\"'count'\"'\"' and seed < 2'")
    with pytest.raises(StoreError, match="cannot be used"):
        analyse(store, run, where="nonsense")
    none = analyse(store, run, where="1 = 0")
    assert (none.searches, none.headline, none.comparisons, none.outcomes) == (0, (), (), ())


def test_an_empty_run_is_a_report_too(grid):
    store, run = grid({"greedy": plain("greedy"), "beam": plain("stage-beam", BON)})
    found = analyse(store, run)
    assert found.notes[0] == "Preliminary: 8 of 8 searches are still missing."
    assert found.headline == ()
    assert [s.problems for s in found.standings] == [0, 0]


def test_rows_without_a_trace_are_left_out_of_the_cards(grid):
    store, run = grid({"beam": plain("stage-beam", BON)})
    put(store, run, "beam", 0, 0, selections=(selection("CAPTION", {"a": 1.0, "b": 0.0}, "a"),))
    assert analyse(store, run).cards == ()


# --- a whole ablation ----------------------------------------------------------------------------


def test_accuracies_are_those_that_pandas_finds(made):
    pandas = pytest.importorskip("pandas")
    store, run, found = made
    with sqlite3.connect(store.path) as db:
        rows = pandas.read_sql("select * from results where status = 'ok'", db)
    rows["label"] = rows.cell.map({hash: label for hash, (label, _) in run.cells.items()})
    mean = rows.groupby(["label", "problem"]).correct.mean().groupby("label").mean()
    spent = rows.groupby("label").spent.mean()
    for s in found.standings:
        if s.kind == "search":
            assert s.accuracy.estimate == pytest.approx(mean[s.label])
            assert s.spent == pytest.approx(spent[s.label])


def test_the_same_rows_always_give_the_same_findings(made):
    store, run, found = made
    assert repr(analyse(store, run)) == repr(found)
    assert analyse(store, run, cards=False) == replace(found, cards=())


def test_the_oracle_of_whole_responses_is_what_was_there_to_select(made):
    """Two ways to the same numbers: by candidates, and by selections."""
    _, _, found = made
    for label in ("best-of-n n=4", "best-of-n (matched)"):
        (h,) = [h for h in found.headrooms if h.label == label]
        assert h.stage == "whole"
        assert h.oracle == standing(found, f"oracle of {label}").accuracy
        assert h.random == standing(found, f"random of {label}").accuracy
        assert h.selected == standing(found, label).accuracy


def test_the_headline_and_the_notes_of_a_whole_ablation(made):
    _, _, found = made
    assert len(found.headline) == 5
    compared, scores, lost, sampled, judging = found.headline
    assert compared.startswith("At equal compute: ")
    assert "stage-beam n=4" in compared
    assert scores.startswith("stage-beam n=4 scores ")
    assert "greedy decoding scores" in scores
    assert " of stage-beam n=4: " in lost
    assert "never generated" in lost
    assert sampled.startswith("Of the whole responses that ")
    assert judging.startswith("Judging is 40 % of what stage-beam n=4 spends")
    assert any(note.startswith("3 searches could not be matched") for note in found.notes)
    assert (
        "1 of 72 searches of stage-beam n=4 failed and counts nowhere; the first: The budget"
        in ("\n".join(found.notes))
    )
    assert (
        "sentence-beam (matched) is not at equal compute: it spent 72 % of what it was allotted."
        in found.notes
    )
    assert not any(note.startswith("Preliminary") for note in found.notes)
    assert {card.stage for card in found.cards} >= {"CAPTION", "whole"}


def test_the_headline_is_about_the_cells_that_the_grid_names(grid):
    """Not about one sample and greedy, which every grid gets, though they score better here."""
    cells = {
        "greedy": plain("greedy"),
        "one sample": plain("best-of-n", {"n": 1}),
        "beam": plain("stage-beam", BON),
        "sentences": plain("sentence-beam", BON),
    }
    for added in (None, [digest(cells["greedy"]), digest(cells["one sample"])]):
        store, run = grid(cells)
        run = run if added is None else replace(run, about=run.about | {"added": added})
        for label, scores in zip(cells, ["1110", "1111", "1100", "1000"], strict=True):
            for item, score in enumerate(scores):
                put(store, run, label, item, 0, correct=float(score))
        compared, scored, *_ = analyse(store, run).headline
        assert compared.startswith("Of the grid's 2 cells beam scores best. At equal compute: No")
        assert "beam and greedy" in compared and "one sample" not in compared
        assert scored.startswith("beam scores 0.500")
        assert "greedy decoding scores 0.750" in scored and "one sample scores 1.000" in scored
    # A grid that names them is about them.
    store, run = grid(cells)
    run = replace(run, about=run.about | {"added": []})
    for label in cells:
        for item in range(2):
            put(store, run, label, item, 0, correct=float(label == "one sample"))
    assert "between one sample and greedy" in analyse(store, run).headline[0]


def test_at_equal_compute_a_rival_that_the_grid_names_comes_first(grid):
    beam = plain("stage-beam", BON)
    cells = {
        "vote": plain("majority", BON, goal(digest(beam))),
        "beam": beam,
        "best of n": plain("best-of-n", BON, goal(digest(beam))),
    }
    store, run = grid(cells, reference="beam")
    for label, scores in zip(cells, ["1110", "1100", "1000"], strict=True):
        for item, score in enumerate(scores):
            put(store, run, label, item, 0, correct=float(score), allotted=None)

    def first(added):
        about = run.about | {"added": added}
        return analyse(store, replace(run, about=about)).headline[0]

    own = first([digest(cells["vote"])])
    assert own.startswith("At equal compute: No difference visible between beam and best of n")
    assert "beam and vote" in first([]), "the strongest, if the grid names all"


def test_a_grid_whose_own_cells_all_failed_still_has_a_headline(grid):
    cells = {"greedy": plain("greedy"), "beam": plain("stage-beam", BON)}
    store, run = grid(cells)
    put(store, run, "greedy", 0, 0, correct=1.0)
    put(store, run, "beam", 0, 0, status="failed")
    assert analyse(store, run).headline[0].startswith("greedy scores 1.000")


def test_usage_adds_up(made):
    _, _, found = made
    for s in found.standings:
        assert s.spent == pytest.approx(sum(s.by_role.values()))
        assert sum(s.usage.values(), Usage()).flops == pytest.approx(s.spent)
        if s.allotted is not None:
            assert s.left == pytest.approx(s.allotted - s.spent, abs=1)
