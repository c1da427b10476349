"""How fast the engine is, as ratios against slower and barer ways to do the same work.

    python benchmarks/speed.py --model bundled --part a b c d --json speed.json

(a) the engine against a plain loop in the manner of the published script (`reference_loop.py`);
(b) the engine against a bare loop of the same calls of the model (`replay.py`);
(c) what N = 1, 2, 4, 8, 16 candidates a stage cost;
(d) how much of a search is judging.

The two sides of a ratio run in turns, so that a busy machine slows both; the median of the ratios
is the result. Seconds are printed for orientation and are no result.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from models import RANDOM, Subject, subject
from reference_loop import ReferenceLoop, Work
from replay import Recording

from cot_engine import Answer, Sampling, Usage
from cot_engine.core.events import Selected

COSTS = (1, 2, 4, 8, 16)
JUDGES = ("self", "rationale", "likelihood")


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def timed(subject: Subject, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` took, and what it returned."""
    subject.sync()
    began = clock()
    done = work()
    subject.sync()
    return clock() - began, done


def solve(subject: Subject, index: int, n: int, judge: str = "self") -> Answer:
    return _many(subject, [index], n, judge)[0]


def _many(subject: Subject, indices: list[int], n: int, judge: str = "self") -> list[Answer]:
    return list(
        subject.engine.solve_many(
            [subject.problems[i] for i in indices], strategy="stage-beam", n=n, judge=judge,
            plan=subject.plan, mode=subject.mode, temperature=subject.temperature,
        )
    )  # fmt: skip


def ratios(values: list[float]) -> dict[str, Any]:
    """Median and range of ratios."""
    return {
        "ratio": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
        "of": len(values),
    }


# --- (a) -----------------------------------------------------------------------------------------


def against_reference(
    subject: Subject, widths: list[int], problems: int, rounds: int, flight: int
) -> dict[str, Any]:
    """For each N: reference seconds / engine seconds, one problem at a time; and per problem with
    `flight` problems in flight (0: not measured)."""
    adapter = subject.backend.adapter
    sampling = Sampling(temperature=subject.temperature)
    loop = ReferenceLoop(adapter.model, adapter.processor, subject.plan, subject.mode, sampling)
    found: dict[str, Any] = {}
    for n in widths:
        loop.solve(subject.problems[0], 1)
        solve(subject, 0, n)
        single, crowd, seconds = [], [], {"reference": [], "engine": [], "in_flight": []}
        works, answers = [], []
        for r in range(rounds):
            ours = theirs = 0.0
            for i in range(problems):
                slow, (_, work) = timed(subject, lambda: loop.solve(subject.problems[i], n, r))  # noqa: B023
                quick, answer = timed(subject, lambda: solve(subject, i, n))  # noqa: B023
                single.append(slow / quick)
                theirs, ours = theirs + slow / problems, ours + quick / problems
                works.append(work)
                answers.append(answer)
            seconds["reference"].append(theirs)
            seconds["engine"].append(ours)
            if flight:
                crowded, _ = timed(subject, lambda: _many(subject, list(range(flight)), n))  # noqa: B023
                crowd.append(theirs / (crowded / flight))
                seconds["in_flight"].append(crowded / flight)
        found[f"N={n}"] = {
            "single": ratios(single),
            "in_flight": {"problems": flight, **ratios(crowd)} if flight else None,
            "work_reference": _mean([_reference_work(work) for work in works]),
            "work_engine": _mean([_engine_work(answer) for answer in answers]),
            "seconds_per_problem": {k: statistics.median(v) for k, v in seconds.items() if v},
        }
    return found


def _reference_work(work: Work) -> dict[str, float]:
    return {
        "candidates": work.candidates, "matches": work.matches, "written": work.written,
        "verdict_tokens": work.judged, "prefilled": work.prefilled, "encodes": work.encodes,
    }  # fmt: skip


def _engine_work(answer: Answer) -> dict[str, float]:
    """The same of a search. Equal candidates are merged and not judged: "merged" counts them."""
    generate, judge = (answer.usage.get(role, Usage()) for role in ("generate", "judge"))
    selected = [event for event in answer.trace if isinstance(event, Selected)]
    return {
        "candidates": generate.calls,
        "matches": sum(len(e.matches) for e in selected),
        "merged": sum(len(ids) for e in selected for ids in e.merged.values()),
        "unjudged": sum(len(e.unjudged) for e in selected),
        "written": generate.decoded,
        "verdict_tokens": judge.decoded,
        "prefilled": answer.total.prefilled,
        "encodes": answer.total.encodes,
    }


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.fmean(row[key] for row in rows), 1) for key in rows[0]}


# --- (b) -----------------------------------------------------------------------------------------


def against_bare(subject: Subject, widths: list[int], rounds: int, flight: int) -> dict[str, Any]:
    """Engine seconds / seconds of the same calls of the model alone."""
    found: dict[str, Any] = {}
    cases = [(n, 1) for n in widths] + ([(widths[0], flight)] if flight > 1 else [])
    for n, count in cases:
        indices = list(range(count))
        _many(subject, indices, n)
        with Recording().of(subject.backend) as recording:
            _many(subject, indices, n)
        recording.replay()
        values, ours, bare = [], [], []
        for _ in range(rounds):
            engine, _ = timed(subject, lambda: _many(subject, indices, n))  # noqa: B023
            alone, _ = timed(subject, recording.replay)
            values.append(engine / alone)
            ours.append(engine)
            bare.append(alone)
        found[f"N={n}, {count} in flight"] = {
            **ratios(values),
            "seconds": {"engine": statistics.median(ours), "bare": statistics.median(bare)},
            "calls": recording.summary(),
        }
    return found


# --- (c) and (d) ---------------------------------------------------------------------------------


def costs(subject: Subject, widths: tuple[int, ...], problems: int, rounds: int) -> dict[str, Any]:
    """What a problem costs on average for each N; seconds also as a multiple of N=1."""
    seconds: dict[int, list[float]] = {n: [] for n in widths}
    usage: dict[int, list[Usage]] = {n: [] for n in widths}
    solve(subject, 0, widths[-1])
    for _ in range(rounds):
        for i in range(problems):
            for n in widths:
                took, answer = timed(subject, lambda: solve(subject, i, n))  # noqa: B023
                seconds[n].append(took)
                usage[n].append(answer.total)
    return {
        f"N={n}": {
            "seconds": statistics.fmean(seconds[n]),
            "times_of_first": round(
                statistics.median(
                    [a / b for a, b in zip(seconds[n], seconds[widths[0]], strict=True)]
                ),
                2,
            ),
            **_mean([
                {"new_tokens": u.decoded, "tokens": u.tokens, "calls": u.calls, "flops": u.flops}
                for u in usage[n]
            ]),
        }
        for n in widths
    }  # fmt: skip


def judging(subject: Subject, n: int, problems: int, rounds: int) -> dict[str, Any]:
    """The judge's share of a search in the model's time, tokens and FLOPs, and what the search
    takes as a multiple of one judged by likelihood, which costs nothing."""
    found: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in JUDGES}
    spent: dict[str, list[tuple[Usage, Usage]]] = {name: [] for name in JUDGES}
    matches: dict[str, list[float]] = {name: [] for name in JUDGES}
    for _ in range(rounds):
        for i in range(problems):
            for name in JUDGES:
                took, answer = timed(subject, lambda: solve(subject, i, n, name))  # noqa: B023
                seconds[name].append(took)
                spent[name].append((answer.usage.get("judge", Usage()), answer.total))
                matches[name].append(_engine_work(answer)["matches"])
    for name in JUDGES:
        judge = sum((j for j, _ in spent[name]), Usage())
        total = sum((t for _, t in spent[name]), Usage())
        pairs = zip(seconds[name], seconds["likelihood"], strict=True)
        found[name] = {
            "time": round(judge.seconds / total.seconds, 3),
            "new_tokens": round(judge.decoded / max(1, total.decoded), 3),
            "tokens": round(judge.tokens / max(1, total.tokens), 3),
            "flops": round(judge.flops / max(1, total.flops), 3),
            "matches": round(statistics.fmean(matches[name]), 1),
            "times_of_likelihood": round(statistics.median([a / b for a, b in pairs]), 2),
        }
    return {f"N={n}": found}


# --- all of it -----------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> dict[str, Any]:
    global clock
    clock = CLOCKS[args.clock]
    torch.set_num_threads(args.threads)
    flight = 0 if args.flight < 2 else args.flight
    model = subject(
        args.model, max(args.problems, flight), args.device, args.dtype, args.temperature
    )
    result: dict[str, Any] = {
        "model": model.describe(),
        "threads": args.threads,
        "clock": args.clock,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with model.engine:
        if "a" in args.part:
            result["a"] = against_reference(model, args.n, args.problems, args.rounds, flight)
        if "b" in args.part:
            result["b"] = against_bare(model, args.n, args.rounds * args.problems, flight)
        if "c" in args.part:
            result["c"] = costs(model, tuple(args.costs), args.problems, args.rounds)
        if "d" in args.part:
            result["d"] = judging(model, args.n[0], args.problems, args.rounds)
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        default="bundled",
        help=f"bundled, {', '.join(RANDOM)} (random weights), or a folder",
    )
    parser.add_argument("--part", nargs="+", choices="abcd", default=list("abcd"))
    parser.add_argument("--n", type=int, nargs="+", default=[4, 10], help="candidates a stage")
    parser.add_argument("--costs", type=int, nargs="+", default=COSTS, help="the N of part c")
    parser.add_argument("--problems", type=int, default=4, help="problems solved one by one")
    parser.add_argument("--flight", type=int, default=0, help="problems in flight together (a, b)")
    parser.add_argument("--rounds", type=int, default=2, help="times that everything is repeated")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.6,
        help="a model that is sure of itself writes the same candidate again and "
        "again, and equal ones are merged unjudged; heat makes them differ",
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch, on a CPU")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time of this process, for a busy machine; with one "
        "thread it is what wall time would be on a quiet one",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="write the results here too")
    args = parser.parse_args(argv)  # fmt: skip
    result = measure(args)
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
