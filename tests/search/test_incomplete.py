"""An answer that was cut says so: in the API, the trace, the views and on the command line."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from beams import Beam
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_engine.core.chain import Chain, Step
from cot_engine.core.events import Finished, event_from_json, event_to_json
from cot_engine.core.grammar import incomplete
from cot_engine.core.requests import Segment
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.core.trace import Trace
from cot_engine.errors import BudgetError
from cot_engine.search.budget import Budget
from cot_engine.search.session import Settings
from cot_engine.show.html import render_html
from cot_engine.show.tree import render_tree
from cot_engine.testing import ScriptedBackend, solve_scripted, staged_reply

WHOLE = " ".join(f"word{k}" for k in range(60)) + " end"


def wordy(request, seed):
    """A model that says much in each stage, and `WHOLE` as its conclusion."""
    reply = staged_reply(request, seed).replace("About", "In a few words " * 4 + "about")
    return re.sub(r"\d</CONCLUSION>", f"{WHOLE}</CONCLUSION>", reply)


@given(
    st.sampled_from([Beam(1), Beam(2), Beam(2, unit="sentence"), Beam(3, unit="end")]),
    st.sampled_from(["trained", "prompted"]),
    st.sampled_from(["new tokens", "tokens", "calls"]),
    st.integers(1, 150),
)
@settings(max_examples=60, deadline=None)
def test_under_any_budget_an_answer_is_complete_if_and_only_if_it_is_whole(
    strategy, mode, unit, amount
):
    try:
        answer = solve_scripted(
            strategy,
            backend=ScriptedBackend(script=wordy),
            settings=Settings(mode=mode, budget=Budget(amount, unit)),
        )
    except BudgetError:
        return
    assert answer.complete == answer.text.endswith(" end"), (answer.text, answer.incomplete)
    assert answer.trace.finished.incomplete == answer.incomplete
    if not answer.complete:
        assert f"The budget of {amount} {unit} ended" in answer.incomplete


def chain(text, finish, *faults):
    return Chain("r.0", (Step(text, (Segment(text),), "CONCLUSION", -1.0, 3, finish, faults),))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (chain("<CONCLUSION>2</CONCLUSION>", "stop"), ""),
        # A model that ends its turn has said what it wanted to.
        (chain("<CONCLUSION>2</CONCLUSION>", "eos", "unclosed-last:CONCLUSION"), ""),
        # Cut in an earlier stage, then concluded whole.
        (chain("<REASONING>a</REASONING><CONCLUSION>2</CONCLUSION>", "stop",
               "unclosed:REASONING"), ""),
        (chain("<CONCLUSION>2</REASONING>", "stop", "mismatched:CONCLUSION"), ""),
        (chain("<CONCLUSION>2</CONCLUSION>", "length", "unclosed-last:CONCLUSION"),
         "CONCLUSION reached the most tokens it may have before it was written whole."),
        (chain("<CONCLUSION>2</CONCLUSION>", "stop", "unclosed-last:CONCLUSION"),
         "CONCLUSION reached the most tokens it may have before it was written whole."),
        (chain("<CONCLUSION>2</CONCLUSION>", "budget", "unclosed:CONCLUSION"),
         "The budget of 9 calls ended before CONCLUSION was written whole."),
        (chain("<CONCLUSION></CONCLUSION>", "budget", "empty:CONCLUSION", "unclosed:CONCLUSION"),
         "The budget of 9 calls ended before CONCLUSION was written."),
        (chain("<SUMMARY>a</SUMMARY><CONCLUSION></CONCLUSION>", "stop", "empty:CONCLUSION"),
         "The model wrote nothing as CONCLUSION. The answer is what it wrote last before that."),
        # It would have been opened by force, had there been anything left.
        (chain("<SUMMARY>a</SUMMARY>", "eos", "missing:CONCLUSION"),
         "The budget of 9 calls ended before CONCLUSION was written. The answer is what it wrote"
         " last before that."),
        (chain("<CONCLUSION></CONCLUSION>", "eos", "empty:CONCLUSION"),
         "The model ended its turn before it wrote CONCLUSION."),
        (chain("<CONCLUSION>2<SUMMARY>a</SUMMARY>", "stop", "unclosed:CONCLUSION"),
         "The model began another stage before it ended CONCLUSION."),
        (Chain(), "The budget of 9 calls ended before CONCLUSION was written."),
    ],
)  # fmt: skip
def test_each_way_to_end_has_its_sentence(made, said):
    assert incomplete(made, DEFAULT_PLAN, "9 calls") == said


def test_a_conclusion_at_its_length_limit_is_not_complete_without_any_budget():
    def endless(request, seed):
        return wordy(request, seed).replace("end</CONCLUSION>", "more " * 500)

    answer = solve_scripted(Beam(1), backend=ScriptedBackend(script=endless))
    assert answer.incomplete.startswith("CONCLUSION reached the most tokens")
    silent = ScriptedBackend(script=lambda request, seed: "")
    assert solve_scripted(Beam(1), backend=silent).incomplete != ""


def test_when_the_time_is_over_nothing_more_is_asked():
    """It was concluded nonetheless, with a token after the budget's end."""

    class Slow(ScriptedBackend):
        async def generate(self, request):
            await asyncio.sleep(0.02)
            return await super().generate(request)

    backend = Slow(script=wordy)
    answer = solve_scripted(
        Beam(1), backend=backend, settings=Settings(budget=Budget(0.02, "seconds"))
    )
    assert len(backend.requests) == 1 and answer.left == 0
    assert answer.incomplete.startswith("The budget of 0.02 seconds ended before CONCLUSION was")
    assert "about summary" in answer.text
    assert answer.trace.finished.chain == answer.chain.id == "r.0"


def test_concluding_may_take_what_the_budget_still_pays_for():
    """It was cut at 32 tokens, though tokens cost nothing of a budget in calls."""
    answer = solve_scripted(
        Beam(4),
        backend=ScriptedBackend(script=wordy),
        settings=Settings(budget=Budget(3, "calls")),
    )
    assert answer.complete and answer.text == WHOLE and answer.left >= 0


def test_a_trace_from_before_it_was_recorded_is_read():
    finished = Finished("a", "r.0", {}, {}, incomplete="The budget ended.")
    body = json.loads(event_to_json(finished))
    assert event_from_json(json.dumps(body)) == finished
    del body["incomplete"]
    assert event_from_json(json.dumps(body)) == Finished("a", "r.0", {}, {})


def test_the_drawings_say_it():
    answer = solve_scripted(
        Beam(1),
        backend=ScriptedBackend(script=wordy),
        settings=Settings(budget=Budget(57, "new tokens")),
    )
    from rich.console import Console

    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_tree(answer.trace))
    for drawn in (console.export_text(), render_html(answer.trace)):
        assert "not complete" in drawn and "57 new tokens ended before CONCLUSION" in drawn


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--json"], ["-q"]])
def test_an_answer_that_was_cut_has_its_own_exit_code(cli, picture, tmp_path, more):
    ask = ["solve", picture, "How many?", "--budget", "57 new tokens", "--trace", tmp_path / "t"]
    done = cli(*ask, *more, script="long")
    assert done.returncode == 4, done.stderr
    assert "The answer is not complete. The budget of 57 new tokens ended" in done.stderr
    assert "--allow-incomplete" in done.stderr
    assert Trace.read(tmp_path / "t").finished.incomplete
    if more == ["--json"]:
        assert "57 new tokens" in json.loads(done.stdout)["incomplete"]
    else:
        assert done.stdout.strip(), "what there is of it is printed"


def test_an_incomplete_answer_that_was_allowed_exits_0_and_still_says_so(cli, picture):
    ask = ["solve", picture, "How many?", "--budget", "57 new tokens", "--allow-incomplete"]
    done = cli(*ask, script="long")
    assert done.returncode == 0 and done.stdout.strip()
    assert "The answer is not complete. The budget of 57 new tokens ended" in done.stderr
    assert cli(*ask, "-q", script="long").stderr == ""


def test_a_whole_answer_exits_0(cli, picture):
    done = cli("solve", picture, "How many?", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["incomplete"] == ""
