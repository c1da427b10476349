"""A search in one object of plain values, worked out of its trace: what `--json` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cot_engine.core.fold import Fold
from cot_engine.core.grammar import read
from cot_engine.core.options import shared
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage


def summary(trace: Trace) -> dict[str, Any]:
    """Plain values only. Of an unfinished search, what there is: `answer` is None then. Of one
    whose answer was cut, `incomplete` says why; else it is ""."""
    started, fold = trace.started, trace.fold()
    finished, failed = fold.finished, fold.failed
    usage = fold.spent
    return {
        "answer": finished.answer if finished else None,
        "incomplete": finished.incomplete if finished else None,
        "confidence": finished.confidence if finished else None,
        "failed": failed and {"error": failed.error, "message": failed.message},
        "problem": started.problem,
        "question": started.question,
        "images": [
            {"source": i.source, "digest": i.digest, "size": list(i.size), "notes": list(i.notes)}
            for i in started.images
        ],
        "stages": _stages(trace),
        "winner": _ancestors(finished.chain) if finished else [],
        "faults": finished.faults if finished else {},
        "candidates": sum(len(growth.chains) for growth in fold.growths.values()),
        "matches": _matches(fold),
        **({"retraced": [asdict(each) for each in fold.retraces]} if fold.retraces else {}),
        "usage": {role: asdict(used) for role, used in usage.items()},
        "total": asdict(sum(usage.values(), Usage())),
        "budget": started.budget,
        "left": finished.left if finished else None,
        "seconds": finished.seconds if finished else None,
        "run": {
            "strategy": started.strategy,
            "parameters": started.parameters,
            "judge": started.judge,
            **shared(started),
            "mode": started.mode,
            "sampling": asdict(started.sampling),
            "model": asdict(started.backend),
            "versions": started.versions,
        },
    }


def _stages(trace: Trace) -> list[dict[str, str]]:
    """The stages of the answer's chain, in the order of the plan."""
    if (chain := trace.answered()) is None:
        return []
    contents = read(chain.text, trace.started.plan, complete=True).contents
    return [
        {"stage": stage.tag, "text": contents[stage.tag]}
        for stage in trace.started.plan
        if stage.tag in contents
    ]


def _ancestors(chain: str) -> list[str]:
    """ "r.2.0" -> ["r.2", "r.2.0"]: the winners of the stages, in order."""
    parts = chain.split(".")
    return [".".join(parts[:k]) for k in range(2, len(parts) + 1)]


def _matches(fold: Fold) -> dict[str, int]:
    held = fold.contests.values()
    matches = [match for contest in held for match in contest.matches]
    cached = sum(sum(contest.cached) for contest in held)
    return {
        "held": len(matches) - cached,
        "cached": cached,
        "ties": sum(match.outcome == "tie" for match in matches),
        "flipped": sum(match.flipped for match in matches),
    }
