"""Sessions on a scripted backend, and chains made by hand, to grow from."""

from __future__ import annotations

import asyncio

from cot_engine.core.chain import Chain, Step
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Segment
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.search.expand import Portion
from cot_engine.search.session import Session, Settings
from cot_engine.search.strategy import Expand
from cot_engine.testing import ScriptedBackend, staged_reply

PLAN = DEFAULT_PLAN.fit(0)
SUMMARY, REASONING, CONCLUSION = PLAN
S, R, C = "<SUMMARY>s</SUMMARY>", "<REASONING>r</REASONING>", "<CONCLUSION>c</CONCLUSION>"
UNITS = ("flops", "new tokens", "tokens", "calls")


def session(script=staged_reply, *, problem="p", backend=None, plan=PLAN, **more):
    events = []
    backend = backend or ScriptedBackend(script)
    made = Session(
        Problem(problem, "Which is it?"),
        *(backend, Settings(plan=plan, **more), events.append, "scope"),
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


def expand(growth, beam, until, n, greedy=False):
    return asyncio.run(growth.expand(Expand(beam, until, n, greedy)))


def sample(growth, parents, until, count, length, **more):
    return asyncio.run(growth.sample(Portion(tuple(parents), until, count, length, **more)))


def words(n, tag="REASONING"):
    return f"<{tag}>" + " ".join(["w"] * n)
