"""What is told of a search's thoughts, and when: on the events of scripted searches."""

from __future__ import annotations

from dataclasses import dataclass

from serving import TRAINED, scripted

from cot_engine import Expand, Select
from cot_engine.core.events import Selected
from cot_engine.core.usage import Usage
from cot_engine.serve.told import CHANGED, Thinking, judge_share, thoughts


def told(trace):
    """What is told, each with the kind of event at which it was."""
    thinking = Thinking(trace.started.plan)
    return [(type(event).__name__, text) for event in trace for text in thinking.take(event)]


def whole(trace) -> str:
    return "\n\n".join(thoughts(trace.answered(), trace.started.plan))


def solved(**options):
    with scripted() as engine:
        return engine.solve(None, "How many?", **TRAINED, **options).trace


def test_a_stage_is_told_when_it_is_selected():
    trace = solved(strategy="stage-beam", n=3)
    said = told(trace)
    assert [kind for kind, _ in said] == ["Selected", "Selected"]
    assert "".join(text for _, text in said) == whole(trace)
    assert [text.strip().partition("\n")[0] for _, text in said] == ["SUMMARY", "REASONING"]


def test_what_kept_chains_do_not_share_is_not_decided():
    trace = solved(strategy="stage-beam", n=4, keep=4)
    thinking = Thinking(trace.started.plan)
    said = [(event, [*thinking.take(event)]) for event in trace]
    first, *_, last = [(event, texts) for event, texts in said if isinstance(event, Selected)]
    assert len(first[0].kept) == 3 and first[1] == [], "several summaries went on"
    assert len(last[0].kept) == 1 and thinking.told == thoughts(
        trace.answered(), trace.started.plan
    )
    assert "".join(text for _, texts in said for text in texts) == whole(trace)


@dataclass(frozen=True)
class Regrets:
    """Decides, and then begins anew."""

    def search(self, task):
        grown = yield Expand(task.start, until=task.plan["SUMMARY"], n=1)
        yield Select(grown, keep=1)
        again = yield Expand(task.start, until="end", n=4)
        return next(chain for chain in again if not chain.text.startswith(grown[0].text))


def test_a_strategy_that_goes_back_is_told_to_have_done_so():
    trace = solved(strategy=Regrets())
    (kind, first), *rest = told(trace)
    assert kind == "Selected" and {kind for kind, _ in rest} == {"Finished"}
    said = "".join(text for _, text in rest)
    assert said == f"\n\n{CHANGED}\n\n{whole(trace)}" and first not in whole(trace)


def test_the_judges_share_is_of_operations_or_else_of_tokens():
    usage = {"generate": Usage(decoded=30), "judge": Usage(prefilled=10)}
    assert judge_share(usage) == 0.25
    assert judge_share({**usage, "judge": Usage(prefilled=10, flops=5)}) == 1.0
    assert judge_share({}) == 0.0
