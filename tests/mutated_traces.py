"""Traces with one leaf replaced, and all that is done with a trace.

python tests/mutated_traces.py        # every leaf of every small trace; prints what raised
"""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import Iterator

import make_traces
from rich.console import Console

from cot_engine.core.events import event_to_json
from cot_engine.core.trace import Trace
from cot_engine.errors import CotEngineError
from cot_engine.judging.judges import LikelihoodScorer, ScorerJudge
from cot_engine.search.loop import Named
from cot_engine.search.rejudge import recorded_problem, rejudge, replayed
from cot_engine.show.board import Board
from cot_engine.show.html import render_html
from cot_engine.show.summary import summary
from cot_engine.show.tree import render_tree

DEEP: list = []
for _ in range(60):
    DEEP = [DEEP]
VALUES = [None, True, "x", "", "r", 10**290, -1, 0, 1e308, [], {}, DEEP, {"a": 1}, ["x"]]
RAW = ["1e400", "NaN", "-Infinity", "[" * 5000 + "]" * 5000, "1" * 5000]


def leaves(value, path=()) -> Iterator[tuple]:
    """The paths of everything in a JSON value: leaves, lists and objects."""
    yield path
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))


def mutants(trace: Trace) -> Iterator[tuple[str, bytes]]:
    """Each kind of place in the trace, replaced by each of VALUES and RAW: its name, and the file.
    Of many places of a kind (the matches of a tournament) the first is taken."""
    lines = [event_to_json(event) for event in trace]
    seen = set()
    for at, line in enumerate(lines):
        body = json.loads(line)
        for path in list(leaves(body)):
            kind = (body["event"], *("#" if isinstance(key, int) else key for key in path))
            if kind in seen:
                continue
            seen.add(kind)
            for value in [*VALUES, *RAW]:
                mark = "\0here"
                changed = json.loads(line)
                if not path:
                    changed = mark
                else:
                    inner = changed
                    for key in path[:-1]:
                        inner = inner[key]
                    inner[path[-1]] = mark
                text = value if value in RAW else json.dumps(value)
                new = json.dumps(changed).replace(json.dumps(mark), text, 1)
                data = "\n".join([*lines[:at], new, *lines[at + 1 :], ""])
                yield ".".join(map(str, kind)) + f" = {text[:20]}", data.encode()


def use(data: bytes) -> str:
    """Everything that is done with a trace's file. What came of it: "refused" by a TraceError, or
    what could be done. Raises whatever is no CotEngineError."""
    try:
        trace = Trace.parse(data, "t.jsonl")
    except CotEngineError as error:
        return type(error).__name__
    console = Console(file=io.StringIO(), width=80)
    done = []
    judge = Named("likelihood", ScorerJudge(LikelihoodScorer()))

    def again() -> None:
        found = asyncio.run(rejudge(trace, judge, tournament="round-robin"))
        render_tree(replayed(trace, found))

    for view in (
        lambda: console.print(render_tree(trace)),
        lambda: render_html(trace),
        lambda: json.dumps(summary(trace)),
        trace.chains,
        trace.canonical,
        lambda: list(map(Board().take, trace)),
        lambda: recorded_problem(trace),
        again,
    ):
        try:
            view()
            done.append("done")
        except CotEngineError as error:
            done.append(type(error).__name__)
    return " ".join(done)


def main() -> None:
    outcomes, raised = Counter(), Counter()
    traces = ("stage_beam", "best_of_n", "greedy", "sentence_beam", "interrupted", "majority")
    for name in traces:
        for what, data in mutants(getattr(make_traces, name)()):
            try:
                outcomes[use(data)] += 1
            except BaseException as error:
                import traceback

                where = traceback.extract_tb(error.__traceback__)[-1]
                at = f"{where.filename[-30:]}:{where.lineno}"
                key = f"{type(error).__name__} {at} {str(error)[:60]}"
                raised[key] += 1
                if raised[key] <= 2:
                    print(name, what, key)
    print(sum(outcomes.values()), "mutants were handled,", sum(raised.values()), "raised")
    for found, count in outcomes.most_common():
        print(f"{count:7,}  {found}")


if __name__ == "__main__":
    main()
