"""Growing against a second account, written out here: what is asked of the model, with which
seeds, what is forced, how what came back becomes steps, and what is held back meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import itertools

import pytest
from attentive import Attentive
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_engine.boundaries import Until
from cot_engine.budget import Budget, Meter
from cot_engine.events import Cut, Growing, Grown
from cot_engine.growth import Exhausted, Growth, largest
from cot_engine.judges import OutOfBudget
from cot_engine.session import FLOOR_TOKENS, MeteredAsk, Session, Settings
from cot_engine.stages import DEFAULT_PLAN, Plan, Stage
from cot_engine.testing import ScriptedBackend, staged_reply
from cot_engine.testing.scripted import _number
from cot_engine.types import GREEDY, Chain, Problem, Prompt, Sampling, Segment, Step, Usage

PLAN = DEFAULT_PLAN.fit(0)
SUMMARY, REASONING, CONCLUSION = PLAN
S, R, C = "<SUMMARY>s</SUMMARY>", "<REASONING>r</REASONING>", "<CONCLUSION>c</CONCLUSION>"
UNITS = ("flops", "new tokens", "tokens", "calls")


def session(script=staged_reply, *, problem="p", backend=None, plan=PLAN, **more):
    events = []
    backend = backend or ScriptedBackend(script)
    made = Session(
        Problem(problem, "Which is it?"),
        *(plan, backend, Settings(plan=plan, **more), events.append, "scope"),
    )
    return made, backend, events


def step(text, tokens=1, stage="SUMMARY", finish="stop", faults=(), logprob=-1.0):
    segments = (Segment(text, tuple(range(tokens))),)
    return Step(text, segments, stage, logprob, tokens, finish, faults)


def chain(*texts, at=0, **more):
    """A chain of one step for each text, the last step's fields given by `more`."""
    grown = Chain()
    for k, text in enumerate(texts):
        last = k == len(texts) - 1
        grown = grown.grow(at if last else 0, step(text, **(more if last else {})), False)
    return grown


def expand(growth, *args, **more):
    return asyncio.run(growth.expand(*args, **more))


# --- seeds ---------------------------------------------------------------------------------------


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


# --- which children, in which order --------------------------------------------------------------


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
    made.reporter.request = lambda whole=True: told.append(whole) or request(whole)
    expand(Growth(made), (Chain(),), "end", 1)
    assert set(told) == {whole}


def test_a_whole_response_that_used_its_very_last_token_is_whole():
    left = ["s</SUMMARY>", "r</REASONING>", "c</CONCLUSION>"]
    made, *_ = session(lambda request, seed: left.pop(0), mode="prompted")
    ((children,), _) = asyncio.run(Growth(made).sample([Chain()], "end", 1, 3, False, False))
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


# --- how what was written becomes steps ----------------------------------------------------------

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
    ((children,), usage) = asyncio.run(growth.sample([parent], until, 1, 999, False, False))
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
    ((children,), _) = asyncio.run(
        Growth(made).sample([chain("<A>a</A>", stage="A")], plan.stages[1], 1, 99, False, False)
    )
    assert children[0].last.faults == (("missing:B",) if missing else ())


def words(n, tag="REASONING"):
    return f"<{tag}>" + " ".join(["w"] * n)


@pytest.mark.parametrize(
    ("share", "faults"), [(9, "unclosed:REASONING"), (20, "unclosed:REASONING")]
)
def test_a_stage_that_had_no_more_tokens_is_closed_and_says_whose_fault_it_was(share, faults):
    plan = Plan((Stage("REASONING", "", "", length=20), CONCLUSION))
    made, *_ = session(lambda request, seed: words(50), plan=plan)
    ((children,), _) = asyncio.run(
        Growth(made).sample([Chain()], plan.stages[0], 1, share, False, False)
    )
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
        ((children,), _) = asyncio.run(growth.sample([grown], "sentence", 1, 99, False, False))
        (grown,) = children
        finishes.append(grown.last.faults)
    # 1 + 4 + 4 + 4 tokens: only those of this stage count, until they are as many.
    assert finishes == [*[()] * (sentences - 1), ("unclosed:REASONING",)]


def test_what_is_cut_between_two_stages_lacks_those_to_come():
    made, *_ = session(lambda request, seed: S + " " + R + C)
    ((children,), _) = asyncio.run(Growth(made).sample([Chain()], "end", 1, 1, False, False))
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
    ((children,), _) = asyncio.run(Growth(made).sample([Chain()], "end", 1, share, False, False))
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
    growing = Growth(made).sample([chain(S)], "sentence", 1, share, False, False, upto)
    ((children,), _) = asyncio.run(growing)
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
    ((children,), _) = asyncio.run(Growth(made).sample([Chain()], "end", 1, share, False, False))
    (child,) = children
    assert child.last.tokens == share and child.last.finish == "budget" and not child.done
    unclosed = () if share == 3 else ("unclosed:REASONING",)
    assert child.last.faults == (*unclosed, *lacks)


def test_the_length_of_a_unit_is_that_of_the_stages_still_to_come():
    growth = Growth(session()[0])
    opened = chain("<SUMMARY>a</SUMMARY>", "<REASONING>x")
    assert growth.length(Chain(), "end") == 256 + 1024 + 256
    assert growth.length(opened, "end") == 1024 + 256
    assert growth.length(opened, CONCLUSION) == 256
    short = Growth(session(plan=Plan((Stage("A", "", "", length=9), CONCLUSION)))[0])
    assert (growth.length(opened, "sentence"), short.length(Chain(), "sentence")) == (256, 9)


# --- concluding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "mode", "forced"),
    [
        ((), "trained", "<CONCLUSION>"),
        ((S,), "trained", "<CONCLUSION>"),
        ((S,), "prompted", "\n\n<CONCLUSION>"),
        ((S, "<REASONING>r"), "trained", "</REASONING><CONCLUSION>"),
        ((S, "\n\n<REASONING>r"), "prompted", "</REASONING>\n\n<CONCLUSION>"),
        ((S, R, "<CONCLUSION>c"), "trained", ""),
    ],
)
def test_concluding_opens_the_last_stage_and_closes_what_is_open(before, mode, forced):
    made, backend, events = session(lambda request, seed: "4</CONCLUSION>", mode=mode, seed=3)
    growth, parent = Growth(made), chain(*before) if before else Chain()
    growth.children[parent.id] = 2
    told, doing = [], made.reporter.doing
    made.reporter.doing = lambda *what: told.append(what) or doing(*what)
    child, usage = asyncio.run(growth.conclude(parent))
    (request,) = backend.requests
    assert "".join(s.text for s in request.prefix) == parent.text + forced
    assert (request.seeds, request.sampling, request.max_new_tokens) == ((0,), GREEDY, 256)
    assert child.id == f"{parent.id}.2" and growth.children[parent.id] == 3 and child.done
    assert child.text == parent.text + forced + "4</CONCLUSION>"
    growing, grown = events
    assert (growing.parents, growing.unit, growing.n) == ((parent.id,), "CONCLUSION", 1)
    assert grown.forced and grown.usage == usage == made.meter.total
    assert told == [("growing", "CONCLUSION", 1)]
    (told_of,) = grown.chains
    assert (told_of.id, told_of.steps) == (child.id, child.steps[-1:]), "the new step alone"
    told.clear()
    asyncio.run(growth.sample([parent, chain(S, at=3)], "sentence", 4, 9, False, False))
    assert told == [("growing", "sentence", 8)]


@pytest.mark.parametrize("length", [0, -1, 1.0, True, "9", None])
def test_a_judge_that_asks_for_no_length_is_told_before_anything_is_sent(length):
    made, backend, _ = session()
    with pytest.raises(TypeError, match="length is"):
        asyncio.run(
            MeteredAsk(made, "judge", ()).write(Prompt("q"), ["a"], Until(), length, GREEDY)
        )
    assert not backend.requests
    asyncio.run(MeteredAsk(made, "judge", ()).write(Prompt("q"), ["a"], Until(), 1, GREEDY))
    assert backend.requests[-1].max_new_tokens == 1


@pytest.mark.parametrize(
    "wrong",
    [
        *({"prompt": "q"}, {"prompt": Prompt(5)}, {"tails": "ab"}, {"tails": ()}, {"tails": [1]}),
        *({"until": None}, {"sampling": None}),
    ],
    ids=str,
)
def test_a_judge_that_asks_wrongly_is_told_before_anything_is_sent(wrong):
    made, backend, _ = session()
    right = {"prompt": Prompt("q"), "tails": ["a"], "until": Until(), "sampling": GREEDY}
    with pytest.raises(TypeError):
        asyncio.run(MeteredAsk(made, "judge", ()).write(**right | wrong, length=9))
    if "prompt" in wrong or "tails" in wrong:
        asked = {name: (right | wrong)[name] for name in ("prompt", "tails")}
        with pytest.raises(TypeError):
            asyncio.run(MeteredAsk(made, "judge", ()).choose(**asked, choices=("1", "2")))
    assert not backend.requests


def test_a_scope_is_let_go_of_once():
    made, backend, _ = session()
    made.release()
    made.release()
    assert backend.released == ["scope"]


def test_what_a_session_begins_with():
    made, *_ = session(sampling=Sampling(0.5))
    assert (made.match, made.safe, made.settings.seed) == (0.0, None, 0)
    request = made.growing((), Until(), (1, 2), 7)
    assert (request.sampling, request.seeds, request.max_new_tokens) == (Sampling(0.5), (1, 2), 7)
    assert request.role == "generate" and request.prompt == made.prompt


def test_a_question_writes_no_tokens_and_a_continuation_those_it_has():
    made, *_ = session()
    told = []
    made.reporter.answered = lambda headway, tokens, rows: told.append((tokens, rows))
    asyncio.run(MeteredAsk(made, "judge", ()).choose(Prompt("q"), ["a", "b"], ["1", "2"]))
    expand(Growth(made), (Chain(),), SUMMARY, 3)
    assert told == [(0, 2), (made.meter.usage["generate"].decoded, 3)]


@pytest.mark.parametrize(
    ("budget", "fault", "finish"),
    [(None, "unclosed-last:CONCLUSION", "length"), (40, "unclosed:CONCLUSION", "budget")],
)
def test_a_conclusion_that_ends_in_the_air_says_whether_the_budget_cut_it(budget, fault, finish):
    made, *_ = session(
        lambda request, seed: "w " * 999, budget=budget and Budget(budget, "new tokens")
    )
    child, _ = asyncio.run(Growth(made).conclude(chain(S)))
    assert (child.last.faults[-1], child.last.finish, child.done) == (fault, finish, True)


# --- what is held back ---------------------------------------------------------------------------


def test_the_floor_is_what_a_conclusion_costs_there_with_its_tags():
    made, *_ = session(backend=Attentive(), budget=Budget(1e9, "flops"))
    for length, grown in itertools.product((1, 5, 40), (0, 1, 30)):
        prefix = chain(words(length)).segments
        context = len("Which is it?".split()) + length
        floor = made.floor(prefix, grown)
        places = range(context + max(1, grown), context + max(1, grown) + floor.decoded)
        assert floor.flops == sum(1000 + 100 * place for place in places)
        assert (floor.calls, floor.prefilled, floor.decoded) == (1, 0, 32 + 24)
        # A token for each letter of the longest tags is more than any tokenizer takes.
        assert floor.decoded - FLOOR_TOKENS >= len("</REASONING><CONCLUSION>")
    made.safe = Chain()
    assert made.floor(prefix, 9) == Usage()
    assert session()[0].floor(prefix, 9) == Usage()


@pytest.mark.parametrize("turned", [False, True])
def test_the_floor_is_that_of_the_longest_parent_grown_by_what_is_asked(turned):
    made, *_ = session(backend=Attentive(), budget=Budget(1e9, "flops"))
    growth, parents = Growth(made), [chain(words(3), tokens=3), chain(words(30), tokens=30, at=1)]
    floor = growth.floor(parents[::-1] if turned else parents, 17)
    assert floor == made.ending(parents[1].segments, 17)
    assert floor.flops > made.ending(parents[0].segments, 17).flops
    assert floor.flops > made.ending(parents[1].segments, 0).flops


def test_opening_later_stages_by_force_is_reserved_for_each_candidate():
    made, *_ = session(backend=Attentive(), mode="prompted", budget=Budget(1e9, "flops"))
    growth, parents = Growth(made), [chain(words(3), tokens=3), chain(words(9), tokens=9, at=1)]
    one = made.ending(parents[1].segments, 1)
    later = growth.later_tags(parents, 5)
    assert later.calls == 2 * 2 * 5  # two stages behind the first, two parents
    assert (later.prefilled, later.flops) == (one.decoded * 20, one.flops * 20)


@given(
    st.sampled_from(UNITS),
    st.integers(1, 4),
    st.sampled_from([SUMMARY, "sentence", "end"]),
    st.sampled_from(["trained", "prompted"]),
    st.floats(0.01, 1.3),
    st.integers(1, 2),
)
@settings(max_examples=50)
def test_a_tight_budget_shortens_to_64_then_thins_then_shortens(unit, n, until, mode, share, many):
    """The number and the length are the largest that fit, by trying them all."""
    plan = Plan(tuple(Stage(s.tag, "", "", n) for s, n in zip(PLAN, (90, 130, 40), strict=True)))
    budget = Budget(1, unit)
    made, _, events = session(backend=Attentive(), mode=mode, budget=budget, plan=plan)
    growth = Growth(made)
    parents = [
        chain(words(5 + 20 * k, "SUMMARY") + ".</SUMMARY>", tokens=5 + 20 * k, at=k)
        for k in range(many)
    ]
    until = plan["REASONING"] if until is SUMMARY else until
    asked = max(growth.length(parent, until) for parent in parents)

    def cost(count, length):
        total = growth.cost(parents, until, count, length, False)
        if until == "end" and mode == "prompted":
            total += growth.later_tags(parents, count)
        return made.meter.budget.of(total)

    def floor(length):
        return made.meter.budget.of(growth.floor(parents, length))

    amount = max(1, int(share * (cost(n, asked) + floor(asked))))
    made.meter.budget = Budget(amount, unit)

    def fits(count, length):
        return cost(count, length) + floor(length) <= amount

    count = next((c for c in range(n, 1, -1) if fits(c, min(64, asked))), 1)
    length = max((k for k in range(1, asked + 1) if fits(count, k)), default=0)
    if length < 8:
        with pytest.raises(Exhausted):
            growth._within_budget(parents, until, n, False)
        assert [(e.what, e.asked, e.granted, e.left) for e in events] == [
            ("search", n * many, 0, amount)
        ]
        return
    assert growth._within_budget(parents, until, n, False) == (count, length)
    assert [(e.what, e.asked, e.granted, e.left) for e in events] == [
        *[("candidates", n, count, amount)] * (count < n),
        *[("tokens", asked, length, amount)] * (length < asked),
    ]


@pytest.mark.parametrize("left", [0, 56 + 7, 56 + 8, 56 + 63, 56 + 127, 56 + 128])
def test_eight_tokens_are_worth_growing_and_sixty_four_are_worth_a_candidate(left):
    made, _, events = session(budget=Budget(1000, "new tokens"))
    made.meter.charge("generate", Usage(decoded=1000 - left))
    growth = Growth(made)
    if left < 56 + 8:
        with pytest.raises(Exhausted):
            growth._within_budget([Chain()], SUMMARY, 2, False)
        assert [(e.what, e.asked, e.granted, e.left) for e in events] == [("search", 2, 0, left)]
    else:
        count = 2 if left == 56 + 128 else 1
        assert growth._within_budget([Chain()], SUMMARY, 2, False) == (count, (left - 56) // count)


def test_where_the_money_ends_what_is_finished_counts_and_else_the_likeliest():
    made, *_ = session(budget=Budget(1, "tokens"))
    parents = tuple(
        chain("<SUMMARY>a</SUMMARY>", at=k, logprob=lp) for k, lp in enumerate((-3.0, -1.0, -2.0))
    )
    with pytest.raises(Exhausted) as ended:
        expand(Growth(made), parents, REASONING, 1)
    assert ended.value.chain == parents[1]
    made.safe = Chain("r.9", (step("x", logprob=-9.0),), True)
    with pytest.raises(Exhausted) as ended:
        expand(Growth(made), parents, REASONING, 1)
    assert ended.value.chain == made.safe


def test_of_whole_responses_the_soundest_then_likeliest_makes_the_answer_safe():
    easy = next(f"<CONCLUSION>{k}</CONCLUSION>" for k in range(999) if _likely(k))
    hard = next(f"<CONCLUSION>{k}</CONCLUSION>" for k in range(999) if not _likely(k))
    left = [easy, S + R + hard, S + R + easy, S + R, S + R + hard]  # in this order, from the root
    made, *_ = session(lambda request, seed: left.pop(0))
    growth = Growth(made)
    grown = expand(growth, (Chain(),), "end", 5)
    assert made.safe == grown[2] and grown[0].done, "the likeliest of all skipped two stages"
    assert grown[0].likelihood() > grown[2].likelihood() > grown[1].likelihood()
    left.append(S + R + easy)
    expand(growth, (Chain(),), "end", 1)
    assert made.safe == grown[2], "once there is one it is the selection's to change"
    made, *_ = session()
    expand(Growth(made), (Chain(),), SUMMARY, 2)
    assert made.safe is None


def _likely(k):
    """Whether the scripted model finds this conclusion as likely as anything."""
    return _number(f"<CONCLUSION>{k}</CONCLUSION>") % 7 == 0


def test_the_longest_child_so_far_is_kept_in_mind_whichever_came_last():
    replies = ["<SUMMARY>" + " w" * n + "</SUMMARY>" for n in (3, 9, 5)]
    left = list(replies)
    made, *_ = session(lambda request, seed: left.pop(0))
    growth = Growth(made)
    for count, longest in ((2, 10), (1, 10)):
        expand(growth, (Chain(),), SUMMARY, count)
        assert growth.longest == {"r": longest}


@pytest.mark.parametrize(("left", "granted"), [(56, 56), (40, 40), (300, 256), (32, 32), (1, 1)])
def test_a_conclusion_gets_what_is_left_and_the_floor_at_least(left, granted):
    made, backend, _ = session(budget=Budget(1000, "new tokens"))
    made.meter.charge("generate", Usage(decoded=1000 - left))
    asyncio.run(Growth(made).conclude(chain(S)))
    assert backend.requests[-1].max_new_tokens == granted
    if left >= 32:  # so much is worth more than a finished chain that there is
        backend.requests.clear()
        made.meter.usage.clear()
        made.meter.charge("generate", Usage(decoded=1000 - left))
        made.safe = Chain("r.7", (step(S),), True)
        asyncio.run(Growth(made).conclude(chain(S)))
        assert backend.requests[-1].max_new_tokens == granted


@pytest.mark.parametrize(("left", "safe"), [(0, None), (31, Chain("r.7", (step(S),), True))])
def test_where_not_even_the_floor_is_left_what_there_is_is_the_answer(left, safe):
    made, backend, events = session(budget=Budget(1000, "new tokens"))
    made.meter.charge("generate", Usage(decoded=1000 - left))
    made.safe, begun = safe, chain(S)
    assert asyncio.run(Growth(made).conclude(begun)) == (safe or begun, Usage())
    assert not backend.requests and not events


def test_a_conclusion_is_shortened_to_what_is_left_rather_than_left_out():
    """Reading the chain again may cost more than the floor held back."""
    made, backend, _ = session(budget=Budget(1000, "new tokens"))
    made.meter.charge("generate", Usage(decoded=1000 - 7))
    concluded, _ = asyncio.run(Growth(made).conclude(chain(S)))
    assert concluded.done and backend.requests[-1].max_new_tokens == 7


@given(st.integers(0, 40), st.integers(0, 45))
def test_largest_is_the_largest(most, limit):
    asked = []

    def fits(k):
        asked.append(k)
        return k <= limit

    assert largest(most, fits) == min(most, limit)
    assert all(1 <= k <= most for k in asked) and len(asked) <= 6


# --- seconds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["trained", "prompted"])
@pytest.mark.parametrize("budget", [None, Budget(8, "seconds"), Budget(10**6, "tokens")], ids=str)
def test_every_request_has_its_deadline(budget, mode):
    made, backend, _ = session(budget=budget, mode=mode)
    now = [100.0]
    made.meter = Meter(budget, clock=lambda: now[0])
    growth = Growth(made)

    def deadlines():
        found = {
            r.deadline if r.deadline is None else round(r.deadline + Meter.HANDOVER, 9)
            for r in backend.requests
        }
        backend.requests.clear()
        return found

    clocked = budget is not None and budget.unit == "seconds"
    now[0] = 101.0
    asyncio.run(growth.conclude(Chain()))
    assert deadlines() == {108.0 if clocked else None}, "a conclusion may use what is kept for it"
    (grown,) = expand(growth, (Chain(),), SUMMARY, 1)
    assert deadlines() == {106.0 if clocked else None}, "a quarter is held back"
    asyncio.run(growth.sample([grown], REASONING, 1, 99, False, False, upto=0.5))
    assert deadlines() == {104.0 if clocked else None}
    made.safe = grown
    expand(growth, (grown,), "end", 2)
    assert deadlines() == {108.0 if clocked else None}, "nothing, once an answer is safe"
    ask = MeteredAsk(made, "judge", ())
    asyncio.run(ask.write(Prompt("q"), ["a", "b"], Until(), 9, GREEDY))
    assert deadlines() == {108.0 if clocked else None}


# --- judges' requests ----------------------------------------------------------------------------


def test_what_a_judge_writes_is_seeded_by_its_words_and_charged_to_it():
    made, backend, _ = session(
        lambda request, seed: "yes " * (1 + seed % 5), budget=Budget(9e9, "flops")
    )
    ask, prompt = MeteredAsk(made, "score", ()), Prompt("Which?")
    asyncio.run(ask.write(prompt, ["a", "bb", "a"], Until(), 9, Sampling()))
    seeds = [request.seeds for request in backend.requests]
    assert seeds == [(made.seed("judge", "Which?", tail),) for tail in ("a", "bb", "a")]
    assert [r.prompt.text for r in backend.requests] == ["Which?a", "Which?bb", "Which?a"]
    assert {(r.scope, r.role, r.max_new_tokens, r.sampling) for r in backend.requests} == {
        ("scope", "score", 9, Sampling())
    }
    assert made.meter.usage == {"score": ask.usage} and ask.usage.calls == 3
    asyncio.run(ask.choose(prompt, ["a", "b"], ["1", "2"], "So: "))
    assert made.meter.usage == {"score": ask.usage} and ask.usage.calls == 5
    last = backend.requests[-1]
    assert (last.tails, last.choices, last.prefix, last.role) == (
        ("a", "b"),
        ("1", "2"),
        "So: ",
        "score",
    )


def test_what_a_judge_asks_is_reserved_as_a_whole_above_the_floor():
    made, backend, _ = session(budget=Budget(9e9, "tokens"))
    prefix = chain(words(9)).segments
    ask, tails = MeteredAsk(made, "judge", prefix), ["a", "b", "c"]
    asyncio.run(ask.write(Prompt("Which?"), tails, Until(), 9, GREEDY))
    full = ask.asked
    assert full == 3 * (9 + 1)
    made, backend, _ = session(budget=Budget(full + 56, "tokens"))
    made.meter.charge("generate", Usage(decoded=1))  # one short: the floor is 56
    ask = MeteredAsk(made, "judge", prefix)
    with pytest.raises(OutOfBudget):
        asyncio.run(ask.write(Prompt("Which?"), tails, Until(), 9, GREEDY))
    assert ask.asked == full and not backend.requests and ask.usage == Usage()
    made.safe = Chain()
    asyncio.run(ask.write(Prompt("Which?"), tails, Until(), 9, GREEDY))


def test_without_a_budget_nothing_is_estimated():
    class Never(ScriptedBackend):
        def estimate(self, request):
            raise AssertionError("estimating is not free")

    made, *_ = session(backend=Never())
    asyncio.run(MeteredAsk(made, "judge", ()).choose(Prompt("q"), ["a"], ["1", "2"]))
    expand(Growth(made), (Chain(),), SUMMARY, 1)


def test_what_cutting_says_is_left_is_what_is_left():
    made, _, events = session(budget=Budget(90, "new tokens"))
    made.meter.charge("generate", Usage(decoded=7))
    expand(Growth(made), (Chain(),), SUMMARY, 3)
    cuts = [e for e in events if isinstance(e, Cut)]
    assert cuts and {cut.left for cut in cuts} == {83}
    assert [type(e) for e in events][-2:] == [Growing, Grown]
