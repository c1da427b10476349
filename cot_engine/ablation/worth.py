"""What the candidates of a search's selections were worth: "never generated" or "judged away"?

A candidate that holds an answer is worth what that answer scores. One that does not is worth the
share of its continuations that end right: it is carried on from where it stands, as the search
itself would have, and nothing else is sampled again. What that costs is charged to a search of its
own, never to the one that is examined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from cot_engine.ablation.records import SelectionRecord
from cot_engine.core.chain import Beam, Chain
from cot_engine.core.events import Selected
from cot_engine.core.grammar import conclusion, read
from cot_engine.core.problem import Problem
from cot_engine.core.stages import Plan
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.errors import ConfigError
from cot_engine.search.strategy import Continuation, Expand, Search, Task

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine
    from cot_engine.options.config import RunConfig
    from cot_engine.questions.data import Item

WHOLE, SENTENCE = "whole", "sentence"
"""The stages of selections that are not about one stage's text: whole responses, and candidates
that end inside a stage."""


async def selections(
    trace: Trace,
    item: Item,
    *,
    engine: Engine | None = None,
    problem: Problem | None = None,
    config: RunConfig | None = None,
    rollouts: int = 0,
) -> tuple[SelectionRecord, ...]:
    """Every selection of a search, in order, with the worth of its candidates and their facts.

    `rollouts` continuations of each unfinished candidate are made: 1 is the most likely one, more
    are sampled as the search sampled, 0 leaves its worth unknown. They need the `engine` and the
    `config` of the search; `problem` spares reading the item's pictures again.
    """
    fold, plan = trace.fold(), trace.started.plan
    held = [event for _, event in fold.selections]
    chains = fold.chains
    among = {name: chains[name] for event in held for name in event.candidates}
    worth = {
        name: item.grade(conclusion(chain.text, plan))
        for name, chain in among.items()
        if chain.done
    }
    if rollouts:
        if engine is None or config is None:
            raise ConfigError("Continuations need the engine and the configuration of the search.")
        config = replace(config, mode=trace.started.mode)
        problem = problem or item.problem()
        unfinished = [chain for chain in among.values() if not chain.done]
        ends, _ = await continued(engine, problem, config, unfinished, rollouts)
        for name, chains_on in ends.items():
            scores = [item.grade(conclusion(chain.text, plan)) for chain in chains_on]
            worth[name] = sum(scores) / len(scores)
    return tuple(
        _selection(event, stage, chains, plan, item, worth)
        for event, stage in zip(held, stages_of(trace), strict=True)
    )


def _selection(
    event: Selected,
    stage: str,
    chains: dict[str, Chain],
    plan: Plan,
    item: Item,
    worth: dict[str, float],
) -> SelectionRecord:
    facts = {}
    for name in event.candidates if stage not in (WHOLE, SENTENCE) else ():
        # A candidate that lacks the stage says nothing there: an empty text.
        text = read(chains[name].text, plan).contents.get(stage, "")
        if (true := item.facts(stage, text)) is not None:
            facts[name] = true
    known = {name: worth[name] for name in event.candidates if name in worth}
    return SelectionRecord(stage, event.candidates, event.kept, known, facts)


def stages_of(trace: Trace) -> tuple[str, ...]:
    """What each selection is counted under: WHOLE, or the tag of the stage that its candidates
    were to end with, whatever they wrote; else that of the stage they do end with, or SENTENCE
    where they end inside one."""
    tags = {stage.tag for stage in trace.started.plan}
    return tuple(
        WHOLE
        if event.about == "whole"
        else contest.unit
        if contest.unit in tags
        else event.stage or SENTENCE
        for contest, event in trace.fold().selections
    )


# --- continuations -------------------------------------------------------------------------------


async def continued(
    engine: Engine, problem: Problem, config: RunConfig, chains: Iterable[Chain], n: int
) -> tuple[dict[str, Beam], Usage]:
    """`n` continuations to the end of each unfinished chain of `chains`, by its id, and what they
    cost: the most likely one for n = 1, sampled ones for more. Equal texts share theirs.

    The chains may come from any search on this problem with this plan. Draws follow from the
    configuration's seed and each chain's place in its own search, and differ from that search's.
    """
    first: dict[str, Chain] = {}  # of each text, as Select sees it: ends without whitespace
    same: dict[str, str] = {}
    for chain in chains:
        same[chain.id] = first.setdefault(chain.text.strip(), chain).id
    if not first:
        return {}, Usage()
    digest = hashlib.blake2b(f"continued|{config.seed}".encode(), digest_size=8).digest()
    config = replace(config, budget=None, seed=int.from_bytes(digest) >> 1)
    onward = Continue(tuple(first.values()), n)
    answer = await engine.asolve(problem, config=config, strategy=onward, judge="likelihood")
    return {name: onward.ends[of] for name, of in same.items()}, answer.total


class Continue(Continuation):
    """A strategy that carries unfinished chains of another search to their ends, and keeps all of
    them in `ends`, by the chain they came from."""

    def __init__(self, chains: Beam, n: int) -> None:
        self.chains = chains
        self.n = n
        self.ends: dict[str, Beam] = {}

    def search(self, task: Task) -> Search:
        greedy = self.n == 1
        grown = yield Expand(task.start, until="end", n=self.n, greedy=greedy)
        # The model may end its turn without an answer; a search would ask for it, and so do we.
        whole = yield Expand(grown, until=task.plan.last, greedy=greedy)
        for k, chain in enumerate(self.chains):
            self.ends[chain.id] = tuple(whole[k * self.n : (k + 1) * self.n])
        return whole[0]
