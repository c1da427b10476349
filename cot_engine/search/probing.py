"""What a probe reads of the chains of one search, as they are grown."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from cot_engine.core.chain import Chain
from cot_engine.core.grammar import read
from cot_engine.core.requests import Generation, States
from cot_engine.core.stages import Plan
from cot_engine.judging.probe import WHOLE, Probe
from cot_engine.judging.states import Held


@dataclass
class Probing:
    """`held` is what the model's layers held while each chain was written, by id; `states` are what
    the model is asked for."""

    probe: Probe
    plan: Plan
    held: dict[str, Held] = field(default_factory=dict)
    states: States = field(init=False)

    def __post_init__(self) -> None:
        self.states = self.probe.states(self.plan)

    def read(self, parent: Chain, chain: Chain, generation: Generation) -> Chain:
        """The chain with what the probe read of its new step, which `generation` is; as it is where
        the backend does not have the model's states."""
        if not generation.places or chain.last is None:
            return chain
        open = read(chain.text, self.plan).open is not None
        before = self.held.get(parent.id, Held())
        held, stretches = before.grown(
            generation, self.plan, self.probe.marks, chain.last.stage, open
        )
        self.held[chain.id] = held
        logits = {stretch.tag: self.probe.stage(stretch) for stretch in stretches}
        if chain.done:
            logits[WHOLE] = self.probe.whole(held)
        scores = {tag: x for tag, x in logits.items() if x is not None and math.isfinite(x)}
        step = replace(chain.last, scores={**chain.last.scores, **scores})
        return replace(chain, steps=(*chain.steps[:-1], step))
