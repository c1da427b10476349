"""What `--json` prints of a search: the whole result in one object, worked out of its trace."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cot_engine.core.events import Grown, Judged
from cot_engine.core.grammar import read
from cot_engine.core.trace import Trace, usage_by_role
from cot_engine.core.usage import Usage


def summary(trace: Trace) -> dict[str, Any]:
    """Plain values only. Of an unfinished search, what there is: `answer` is None then. Of one
    whose answer was cut, `incomplete` says why; else it is ""."""
    started, finished = trace.started, trace.finished
    failed = next((e for e in trace if type(e).__name__ == "Failed"), None)
    usage = finished.usage if finished else usage_by_role(trace)
    return {
        "answer": finished.answer if finished else None,
        "incomplete": finished.incomplete if finished else None,
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
        "candidates": sum(len(event.chains) for event in trace if isinstance(event, Grown)),
        "matches": _matches(trace),
        "usage": {role: asdict(used) for role, used in usage.items()},
        "total": asdict(sum(usage.values(), Usage())),
        "budget": started.budget,
        "left": finished.left if finished else None,
        "seconds": finished.seconds if finished else None,
        "run": {
            "strategy": started.strategy,
            "parameters": started.parameters,
            "judge": started.judge,
            "tournament": started.tournament,
            "orders": started.orders,
            "judge_image": started.judge_image,
            "mode": started.mode,
            "detail": started.detail,
            "sampling": asdict(started.sampling),
            "seed": started.seed,
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


def _matches(trace: Trace) -> dict[str, int]:
    judged = [event for event in trace if isinstance(event, Judged)]
    return {
        "held": sum(not event.cached for event in judged),
        "cached": sum(event.cached for event in judged),
        "ties": sum(event.match.outcome == "tie" for event in judged),
        "flipped": sum(event.match.flipped for event in judged),
    }
