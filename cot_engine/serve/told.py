"""A search as what OpenAI's clients read: a reply, or chunks of one as it comes about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

from cot_engine.core.answers import Answer
from cot_engine.core.chain import Chain
from cot_engine.core.events import Finished, Heard, Selected
from cot_engine.core.fold import Fold
from cot_engine.core.grammar import read
from cot_engine.core.stages import Plan
from cot_engine.core.usage import Role, Usage
from cot_engine.serve.ticket import Ticket

CHANGED = "(What was thought so far was given up. What follows led to the answer.)"


def reply(ticket: Ticket, answer: Answer, model: str) -> dict[str, Any]:
    """A chat.completion."""
    plan = ticket.call.plan
    message = {
        "role": "assistant",
        "content": answer.text,
        "reasoning_content": "\n\n".join(thoughts(answer.chain, plan)) or None,
        "refusal": None,
    }
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": finish_reason(answer.incomplete),
    }
    return {
        **head(ticket, model, "chat.completion"),
        "choices": [choice],
        "usage": usage_of(answer.usage),
        "cot_engine": more(ticket, answer),
    }


def head(ticket: Ticket, model: str, kind: str) -> dict[str, Any]:
    """What every reply and chunk begins with."""
    return {
        "id": ticket.id,
        "object": kind,
        "created": int(ticket.created),
        "model": model,
        "system_fingerprint": None,
    }


def finish_reason(incomplete: str) -> Literal["stop", "length"]:
    """ "length" if the answer is not whole: `cot_engine.incomplete` says why."""
    return "length" if incomplete else "stop"


def more(ticket: Ticket, ended: Answer | Finished) -> dict[str, Any]:
    """What no client of OpenAI's knows of."""
    call = ticket.call
    return {
        "trace": f"/v1/traces/{ticket.id}",
        "strategy": call.strategy.name,
        "judge": call.judge.name,
        "seed": call.config.seed,
        "incomplete": ended.incomplete,
        "confidence": ended.confidence,
        "budget": str(call.budget) if call.budget else None,
        "left": ended.left,
        "seconds": round(ended.seconds, 3),
    }


def usage_of(usage: dict[Role, Usage]) -> dict[str, Any]:
    """What the whole search cost, every candidate and every verdict of the judge. Prompt tokens are
    what was read, cached ones included, as OpenAI counts them."""
    total = sum(usage.values(), Usage())
    read_ = total.prefilled + total.cached
    return {
        "prompt_tokens": read_,
        "completion_tokens": total.decoded,
        "total_tokens": read_ + total.decoded,
        "prompt_tokens_details": {"cached_tokens": total.cached},
        "cot_engine": {
            "roles": {role: asdict(used) for role, used in usage.items()},
            "flops": total.flops,
            "judge_share": judge_share(usage),
            "verifier_share": judge_share(usage, "verify"),
        },
    }


def judge_share(usage: dict[Role, Usage], role: Role = "judge") -> float:
    """The judge's part of the cost, or another role's, 0 to 1: of the operations, or of the tokens
    where the model's sizes are not known."""
    total, judge = sum(usage.values(), Usage()), usage.get(role, Usage())
    part, whole = (judge.flops, total.flops) if total.flops else (judge.tokens, total.tokens)
    return part / whole if whole else 0.0


# --- thinking ------------------------------------------------------------------------------------


def thoughts(chain: Chain, plan: Plan, complete: bool = True) -> list[str]:
    """The stages of a chain but the last, each under its tag; without `complete` those that are
    closed."""
    contents = read(chain.text, plan, complete=complete).contents
    return [
        f"{stage.tag}\n{contents[stage.tag]}"
        for stage in plan.stages[:-1]
        if contents.get(stage.tag)
    ]


class Thinking:
    """What is decided of a search's thoughts, as it is decided.

    A stage is decided once all chains that a selection kept have it in common. Strategies may go
    back, which nobody knows before: what then led to the answer is told whole, and that it is.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.fold = Fold()
        self.told: list[str] = []

    def take(self, event: Heard) -> Iterator[str]:
        """Take in the next event; gives what there is to tell of it."""
        self.fold.take(event)
        if isinstance(event, Selected):
            yield from self._more(self._decided(event.kept))
        elif isinstance(event, Finished) and (chain := self.fold.chains.get(event.chain)):
            yield from self._whole(thoughts(chain, self.plan))

    def _decided(self, kept: tuple[str, ...]) -> list[str]:
        chains = [chain for id in kept if (chain := self.fold.chains.get(id))]
        each = [thoughts(chain, self.plan, complete=False) for chain in chains]
        common = []
        for stage in zip(*each, strict=False):
            if len({*stage}) > 1:
                break
            common.append(stage[0])
        return common

    def _more(self, decided: list[str]) -> Iterator[str]:
        """What comes after what was told; nothing if it is of another line of thought."""
        if decided[: len(self.told)] == self.told:
            for thought in decided[len(self.told) :]:
                yield ("\n\n" if self.told else "") + thought
                self.told.append(thought)

    def _whole(self, thoughts: list[str]) -> Iterator[str]:
        if self.told and thoughts[: len(self.told)] != self.told:
            yield f"\n\n{CHANGED}"
            for thought in thoughts:
                yield f"\n\n{thought}"
        else:
            yield from self._more(thoughts)
