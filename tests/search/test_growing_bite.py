"""Growing against a second account, written out here: what is asked of the model, with which
seeds, what is forced, and how what came back becomes steps."""

from __future__ import annotations

import hashlib

import pytest
from attentive import Attentive
from sessions import (
    CONCLUSION,
    PLAN,
    REASONING,
    SUMMARY,
    C,
    R,
    S,
    chain,
    expand,
    sample,
    session,
    step,
    words,
)

from cot_engine.core.chain import Chain
from cot_engine.core.events import Grown
from cot_engine.core.requests import GREEDY, Sampling
from cot_engine.core.stages import Plan, Stage
from cot_engine.core.usage import Usage
from cot_engine.search.budget import Budget
from cot_engine.search.expand import Growth
from cot_engine.testing import staged_reply


def test_a_seed_is_a_digest_of_run_problem_and_path():
    made, *_ = session(problem="scene 7", seed=42)
    text = b"42|scene 7|r.0.3|REASONING"
    expected = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
    assert made.seed("r.0.3", "REASONING") == expected == 1059472468066089080
    assert all(0 <= made.seed(k) < 2**63 for k in range(200))
    others = [session(problem="scene 8", seed=42), session(problem="scene 7", seed=43)]
    assert expected not in [other.seed("r.0.3", "REASONING") for other, *_ in others]


@pytest.mark.parametrize("mode", ["trained", "prompted"])
@pytest.mark.parametrize("until", [SUMMARY, "sentence", "end"], ids=str)
def test_child_i_is_asked_for_with_the_seed_of_its_path_and_indices_go_on(mode, until):
    made, backend, _ = session(mode=mode)
    growth = Growth(made)
    one, two = expand(growth, (Chain(),), until, 2), expand(growth, (Chain(),), until, 3)
    assert [c.id for c in (*one, *two)] == [f"r.{i}" for i in range(5)]
    seeds = [seed for request in backend.requests for seed in request.seeds]
    if mode == "prompted" and until == "end":
        expected = {made.seed(f"r.{i}", stage.tag) for i in range(5) for stage in PLAN}
        assert len(seeds) == 15 == len(expected) and set(seeds) == expected
    else:
        assert seeds == [made.seed(f"r.{i}") for i in range(5)]
    assert made.meter.usage["generate"].calls == len(seeds), "a call for each continuation"
    other = chain("<SUMMARY>x</SUMMARY>", at=7)
    assert [c.id for c in expand(growth, (other,), "end", 1)] == ["r.7.0"], "counted by parent"


@pytest.mark.parametrize("mode", ["trained", "prompted"])
@pytest.mark.parametrize("until", [SUMMARY, "sentence", "end"], ids=str)
def test_greedy_is_greedy_whatever_is_grown(mode, until):
    sampling = Sampling(0.7, 0.8, 5)
    made, backend, _ = session(mode=mode, sampling=sampling)
    expand(Growth(made), (Chain(),), until, 1, greedy=True)
    assert {r.sampling for r in backend.requests} == {GREEDY}
    backend.requests.clear()
    expand(Growth(made), (Chain(),), until, 1)
    assert {r.sampling for r in backend.requests} == {sampling}


def test_children_stand_where_their_parents_stood():
    made, _, events = session()
    beam = (
        chain("<SUMMARY>a</SUMMARY>", at=0),
        Chain("r.5", (step("done"),), True),
        chain("<SUMMARY>b</SUMMARY>", at=2),
        chain("<SUMMARY>c</SUMMARY>", "<REASONING>c</REASONING>", at=3),
    )
    grown = expand(Growth(made), beam, REASONING, 2)
    assert [c.id for c in grown] == ["r.0.0", "r.0.1", "r.5", "r.2.0", "r.2.1", "r.0.3"]
    growing, told = events
    assert (growing.parents, growing.unit, growing.n) == (("r.0", "r.2"), "REASONING", 2)
    assert isinstance(told, Grown) and [len(c.steps) for c in told.chains] == [1] * 4
    assert told.usage == made.meter.total and not told.forced
    assert expand(Growth(made), beam[1:2], "end", 3) == beam[1:2]


def test_only_where_no_child_opened_the_stage_it_is_forced_and_for_its_own_parent():
    def script(request, seed):
        written = "".join(s.text for s in request.prefix)
        if written.endswith("<REASONING>"):
            return f"forced behind {written[9:10]}</REASONING>"
        if "lost" in written or ("half" in written and not script.half.pop()):
            return "<CONCLUSION>x</CONCLUSION>"
        if "poor" in written:
            return "<REASONING></REASONING>"
        return staged_reply(request, seed)

    script.half = [False, True]
    made, _, events = session(script)
    beam = tuple(
        chain(f"<SUMMARY>{text}</SUMMARY>", at=k)
        for k, text in enumerate(("A lost", "half", "B lost", "poor"))
    )
    grown = expand(Growth(made), beam, REASONING, 2)
    assert [c.id for c in grown] == [
        *("r.0.2", "r.0.3", "r.1.0", "r.1.1", "r.2.2", "r.2.3", "r.3.0", "r.3.1")
    ]
    texts = [c.steps[-1].text for c in grown]
    assert texts[:2] == ["<REASONING>forced behind A</REASONING>"] * 2
    assert texts[4:6] == ["<REASONING>forced behind B</REASONING>"] * 2
    (forced,) = [e for e in events if isinstance(e, Grown) and e.forced]
    assert [c.id for c in forced.chains] == ["r.0.2", "r.0.3", "r.2.2", "r.2.3"]
    assert made.meter.total == sum((e.usage for e in events if isinstance(e, Grown)), Usage())


def test_where_sampling_again_cannot_be_paid_what_was_lost_is_what_there_is():
    text = "<CONCLUSION>" + " w" * 65 + "</CONCLUSION>"
    made, backend, events = session(lambda request, seed: text, budget=Budget(129, "new tokens"))
    (lost,) = expand(Growth(made), (chain(S),), REASONING, 1)
    assert lost.last.faults == ("skipped:REASONING",) and len(backend.requests) == 1
    assert not [e for e in events if isinstance(e, Grown) and e.forced]


@pytest.mark.parametrize(
    ("mode", "until"),
    [("trained", "end"), ("trained", "sentence"), ("prompted", REASONING), ("trained", REASONING)],
)
def test_only_a_stage_and_only_where_tags_are_not_forced_anyway_is_sampled_again(mode, until):
    made, backend, events = session(lambda request, seed: "", mode=mode)
    expand(Growth(made), (chain(S),), until, 1)
    again = mode == "trained" and until is REASONING
    assert len(backend.requests) == 1 + again
    assert [e.forced for e in events if isinstance(e, Grown)] == [False] + [True] * again


def test_a_forced_tag_is_paid_for_where_one_is_forced_and_nowhere_else():
    def script(request, seed):
        return "r</REASONING>" if request.prefix[-1].text == "<REASONING>" else ""

    made, backend, _ = session(backend=Attentive(script), budget=Budget(200, "tokens"))
    expand(Growth(made), (chain(S),), REASONING, 1)
    free, forced = (request.max_new_tokens for request in backend.requests)
    assert free == 200 - 56 - (3 + 1)  # the question, the summary
    assert forced == free - 1


@pytest.mark.parametrize(("mode", "whole"), [("trained", True), ("prompted", False)])
def test_listeners_count_whole_responses_not_their_stages(mode, whole):
    made, *_ = session(mode=mode)
    told, request = [], made.reporter.request
    made.reporter.request = lambda whole=True, *more: told.append(whole) or request(whole, *more)
    expand(Growth(made), (Chain(),), "end", 1)
    assert set(told) == {whole}


def test_a_whole_response_that_used_its_very_last_token_is_whole():
    left = ["s</SUMMARY>", "r</REASONING>", "c</CONCLUSION>"]
    made, *_ = session(lambda request, seed: left.pop(0), mode="prompted")
    ((children,), _) = sample(Growth(made), [Chain()], "end", 1, 3)
    assert children[0].done and children[0].last.finish == "stop"


@pytest.mark.parametrize(
    ("last", "forced"),
    [
        (step("<SUMMARY>a</SUMMARY>"), False),
        (step("<SUMMARY>a</SUMMARY>", finish="eos"), True),
        (step("<SUMMARY>a</SUMMARY>", faults=("skipped:X",)), True),
        (step("<SUMMARY>a</SUMMARY>", faults=("empty:X",)), False),
        (step("<SUMMARY>a", finish="eos"), False),  # its stage is open: nothing to force
    ],
)
def test_a_tag_is_forced_where_the_model_would_go_astray_again(last, forced):
    made, backend, _ = session()
    grown = Chain("r.0", (last,))
    expand(Growth(made), (grown,), "end", 1)
    asked = "".join(segment.text for segment in backend.requests[0].prefix)
    assert asked == last.text + "<REASONING>" * forced


AS = [  # before, until, what the model writes -> text of the step, stage, finish, faults, done
    ("", SUMMARY, S, S, "SUMMARY", "stop", (), False),
    ("", SUMMARY, S[:-10], S, "SUMMARY", "eos", ("ended:SUMMARY",), False),
    ("", SUMMARY, "stray" + S, "stray" + S, "SUMMARY", "stop", ("stray:SUMMARY",), False),
    ("", SUMMARY, "", "", "", "eos", ("missing:SUMMARY",), False),
    ("", SUMMARY, R, R, "REASONING", "stop", ("skipped:SUMMARY",), False),
    (S, REASONING, R, R, "REASONING", "stop", (), False),
    (S, REASONING, C, C, "CONCLUSION", "stop", ("skipped:REASONING",), True),
    (S, REASONING, S, S, "SUMMARY", "stop", ("repeated:SUMMARY", "missing:REASONING"), False),
    (S + R, CONCLUSION, C[:-13], C, "CONCLUSION", "eos", ("unclosed-last:CONCLUSION",), True),
    ("", "sentence", "<SUMMARY>A b. C", "<SUMMARY>A b.", "SUMMARY", "stop", (), False),
    ("<SUMMARY>A.", "sentence", " b</SUMMARY>", " b</SUMMARY>", "SUMMARY", "stop", (), False),
    ("<SUMMARY>A.", "sentence", " b", " b</SUMMARY>", "SUMMARY", "eos", ("ended:SUMMARY",), False),
    (S, "sentence", "", "", "SUMMARY", "eos", ("missing:REASONING",), False),
    (S, "sentence", "no tag", "no tag", "SUMMARY", "eos", ("missing:REASONING",), False),
    (S, "end", R + C, R + C, "CONCLUSION", "stop", (), True),
    (S, "end", C, C, "CONCLUSION", "stop", ("skipped:REASONING",), True),
    (S, "end", R, R, "REASONING", "eos", ("missing:CONCLUSION",), False),
    (S, "end", R + C[:-13], R + C, "CONCLUSION", "eos", ("unclosed-last:CONCLUSION",), True),
    (S, "end", R[:-12], R, "REASONING", "eos", ("ended:REASONING",), False),
]


@pytest.mark.parametrize(("before", "until", "written", "text", *"abcd"), AS)
def test_what_the_model_wrote_becomes_a_step(before, until, written, text, a, b, c, d):
    made, *_ = session(lambda request, seed: written)
    parent = chain(before, stage="SUMMARY") if before else Chain()
    growth = Growth(made)
    ((children,), usage) = sample(growth, [parent], until, 1, 999)
    (child,) = children
    last = child.steps[-1]
    assert (last.text, last.stage, last.finish, last.faults, child.done) == (text, a, b, c, d)
    assert "".join(s.text for s in last.segments) == last.text
    sampled = [s for s in last.segments if s.ids is not None]
    assert sum(len(s.ids) for s in sampled) == last.tokens == usage.decoded
    assert growth.longest[parent.id] == last.tokens


@pytest.mark.parametrize("missing", [False, True])
def test_an_optional_stage_may_be_left_out(missing):
    plan = Plan((Stage("A", "", ""), Stage("B", "", "", optional=True), Stage("C", "", "")))
    text = "<X>" if missing else "<C>c</C>"
    made, *_ = session(lambda request, seed: text, plan=plan)
    ((children,), _) = sample(Growth(made), [chain("<A>a</A>", stage="A")], plan.stages[1], 1, 99)
    assert children[0].last.faults == (("missing:B",) if missing else ())


@pytest.mark.parametrize(
    ("share", "faults"), [(9, "unclosed:REASONING"), (20, "unclosed:REASONING")]
)
def test_a_stage_that_had_no_more_tokens_is_closed_and_says_whose_fault_it_was(share, faults):
    plan = Plan((Stage("REASONING", "", "", length=20), CONCLUSION))
    made, *_ = session(lambda request, seed: words(50), plan=plan)
    ((children,), _) = sample(Growth(made), [Chain()], plan.stages[0], 1, share)
    last = children[0].last
    assert last.tokens == share and last.text == words(share) + "</REASONING>"
    assert last.finish == ("budget" if share < 20 else "length") and last.faults == (faults,)


@pytest.mark.parametrize(("length", "sentences"), [(12, 3), (9, 2), (10, 3)])
def test_a_sentence_goes_on_until_its_stage_has_had_its_length(length, sentences):
    plan = Plan(
        (Stage("A", "", "", length=10), Stage("REASONING", "", "", length=length), CONCLUSION)
    )
    made, *_ = session(lambda request, seed: " w w w w. More", plan=plan)
    growth, begun = Growth(made), step("<REASONING>x.", stage="REASONING")
    grown = Chain("r.0", (step("<A>" + " w" * 9 + ".</A>", tokens=10, stage="A"), begun))
    finishes = []
    while "</REASONING>" not in grown.text and len(finishes) < 9:
        ((children,), _) = sample(growth, [grown], "sentence", 1, 99)
        (grown,) = children
        finishes.append(grown.last.faults)
    # 1 + 4 + 4 + 4 tokens: only those of this stage count, until they are as many.
    assert finishes == [*[()] * (sentences - 1), ("unclosed:REASONING",)]


def test_what_is_cut_between_two_stages_lacks_those_to_come():
    made, *_ = session(lambda request, seed: S + " " + R + C)
    ((children,), _) = sample(Growth(made), [Chain()], "end", 1, 1)
    assert (children[0].last.text, children[0].last.finish) == (S, "budget")
    assert children[0].last.faults == ("missing:REASONING", "missing:CONCLUSION")


@pytest.mark.parametrize(
    ("share", "fault"), [(99, "unclosed-last:CONCLUSION"), (5, "unclosed:CONCLUSION")]
)
def test_a_conclusion_that_ran_out_of_its_own_length_is_repaired_one_cut_is_not(share, fault):
    """Stage by stage: whose fault it was that it is not closed decides what it is worth."""
    plan = Plan((Stage("A", "", ""), Stage("CONCLUSION", "", "", length=6)))
    left = ["a</A>", "w " * 50]
    made, *_ = session(lambda request, seed: left.pop(0), mode="prompted", plan=plan)
    ((children,), _) = sample(Growth(made), [Chain()], "end", 1, share)
    assert children[0].done and children[0].last.faults == (fault,)
    assert children[0].last.tokens == 1 + min(share - 1, 6)


@pytest.mark.parametrize(
    ("upto", "share", "text", "faults"),
    [
        (0.9, 99, "<REASONING>A b.", ()),  # whole: its stage goes on
        (None, 1, "<REASONING>A", ()),  # cut, but the next sentence goes on from it
        (0.9, 1, "<REASONING>A</REASONING>", ("unclosed:REASONING",)),  # nobody goes on
    ],
)
def test_a_sentence_cut_is_closed_where_it_is_not_written_on(upto, share, text, faults):
    made, *_ = session(lambda request, seed: "<REASONING>A b. C", budget=Budget(999, "tokens"))
    ((children,), _) = sample(Growth(made), [chain(S)], "sentence", 1, share, upto=upto)
    assert (children[0].last.text, children[0].last.faults) == (text, faults)
    assert children[0].last.finish == ("stop" if share == 99 else "budget")


@pytest.mark.parametrize(
    ("replies", "text", "faults", "finish"),
    [
        (("s</SUMMARY>", "r</REASONING>", "c</CONCLUSION>"), (S, R, C), (), "stop"),
        (("s</SUMMARY>", "", "c</CONCLUSION>"), (S, "<REASONING></REASONING>", C), None, "stop"),
        (("s</SUMMARY>", "r</REASONING>", "c"), (S, R, C), ("unclosed-last:CONCLUSION",), "eos"),
    ],
)
def test_a_whole_response_of_a_prompted_model_is_one_step(replies, text, faults, finish):
    left = list(replies)
    made, backend, _ = session(lambda request, seed: left.pop(0), mode="prompted")
    (child,) = expand(Growth(made), (Chain(),), "end", 1)
    (last,) = child.steps
    assert child.done and last.text == "\n\n".join(text) and last.finish == finish
    assert last.stage == "CONCLUSION" and last.logprob < 0
    if faults is not None:
        assert last.faults == faults
    else:
        assert "empty:REASONING" in last.faults or "ended:REASONING" in last.faults
    assert last.tokens == sum(len(s.ids or ()) for s in last.segments)
    assert [r.until.strings[0] for r in backend.requests] == [SUMMARY.close] * 3
    assert [r.max_new_tokens for r in backend.requests] == [256, 1024, 256]


@pytest.mark.parametrize(
    ("share", "lacks"),
    [(3, ("missing:REASONING", "missing:CONCLUSION")), (4, ("missing:CONCLUSION",))],
)
def test_a_whole_response_that_had_no_more_tokens_lacks_what_it_did_not_come_to(share, lacks):
    made, *_ = session(lambda request, seed: "s s </SUMMARY>", mode="prompted")
    ((children,), _) = sample(Growth(made), [Chain()], "end", 1, share)
    (child,) = children
    assert child.last.tokens == share and child.last.finish == "budget" and not child.done
    unclosed = () if share == 3 else ("unclosed:REASONING",)
    assert child.last.faults == (*unclosed, *lacks)


def test_the_length_of_a_unit_is_that_of_the_stages_still_to_come():
    growth = Growth(session()[0])
    opened = chain("<SUMMARY>a</SUMMARY>", "<REASONING>x")
    assert growth.length((Chain(),), "end") == 256 + 1024 + 256
    assert growth.length((opened,), "end") == 1024 + 256
    assert growth.length((opened,), CONCLUSION) == 256
    short = Growth(session(plan=Plan((Stage("A", "", "", length=9), CONCLUSION)))[0])
    assert (growth.length((opened,), "sentence"), short.length((Chain(),), "sentence")) == (256, 9)
