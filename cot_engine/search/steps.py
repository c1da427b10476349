"""From what a model wrote to the step of a chain: repaired where needed, its faults named."""

from __future__ import annotations

from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Chain, Step
from cot_engine.core.grammar import Reading, new_faults, next_stage, read, tier
from cot_engine.core.requests import Finish, Generation, Segment
from cot_engine.core.stages import Plan, Stage
from cot_engine.judging import prompts

_SENTENCE = 256  # tokens of the longest sentence


def has(chain: Chain, until: Stage | str, plan: Plan) -> bool:
    """Whether a chain needs no growing for this unit."""
    if chain.done:
        return True
    return isinstance(until, Stage) and until.tag in read(chain.text, plan).contents


def unit_length(chain: Chain, until: Stage | str, plan: Plan) -> int:
    """The most new tokens the unit may take, budget aside."""
    if isinstance(until, Stage):
        return until.length
    reading = read(chain.text, plan)
    ahead = [stage for stage in plan if stage.tag not in reading.contents]
    if until == "end":
        return sum(stage.length for stage in ahead)
    return min(_SENTENCE, ahead[0].length if ahead else _SENTENCE)


def boundary(until: Stage | str, plan: Plan, mode: str) -> Until:
    """Where the model stops writing a unit."""
    if until == "end" and mode == "trained":
        return Until((plan.last.close,))
    # Any closing tag ends a step: a model that skips a stage must not write on unseen.
    return Until(tuple(stage.close for stage in plan), sentence=until == "sentence")


def opening(
    chain: Chain, until: Stage | str, plan: Plan, mode: str, forced: bool
) -> tuple[Segment, ...]:
    """The tag put in front of what is sampled: none for a model that opens stages itself, unless it
    is `forced`, or its last step ended the turn or went astray, and so would again."""
    reading = read(chain.text, plan)
    last = chain.last
    astray = last is not None and (last.finish == "eos" or tier(last.faults) == 2)
    if reading.open or not (forced or astray or mode == "prompted"):
        return ()
    stage = until if isinstance(until, Stage) else next_stage(reading, plan)
    if stage is None:
        return ()
    return (Segment(prompts.separator(chain, mode) + stage.open),)


def child(
    parent: Chain,
    index: int,
    until: Stage | str,
    plan: Plan,
    prefix: tuple[Segment, ...],
    generation: Generation,
    *,
    cut: bool,
    written_on: bool = True,
) -> Chain:
    """The child chain that a generation behind `prefix` makes.

    `cut`: it had fewer tokens than the unit may take, for the budget's sake. One so cut that is
    not `written_on` has its open stage closed.
    """
    before = read(parent.text, plan)
    segments = (*prefix, Segment(generation.text, generation.ids))
    text = "".join(segment.text for segment in segments)
    after = read(parent.text + text, plan)
    finish = "budget" if cut and generation.finish == "length" else generation.finish
    faults: tuple[str, ...] = ()
    broken = finish == "budget" and not written_on
    if after.open and (broken or _breaks_off(parent, until, plan, generation, after)):
        stage = plan[after.open]
        if stage == plan.last and finish != "budget":
            faults = (f"unclosed-last:{stage.tag}",)
        elif generation.finish == "eos":
            faults = (f"ended:{stage.tag}",)
        else:
            faults = (f"unclosed:{stage.tag}",)
        segments = (*segments, Segment(stage.close))
        text += stage.close
        after = read(parent.text + text, plan)
    elif until == "end":
        after = read(parent.text + text, plan, complete=True)
    faults = new_faults(before, after) + faults
    step = Step(
        text,
        segments,
        after.open or (list(after.contents) or [""])[-1],
        generation.logprob,
        len(generation.ids),
        finish,
        faults + _lacking(until, plan, before, after, faults),
    )
    return parent.grow(index, step, plan.last.tag in after.contents)


def _breaks_off(
    parent: Chain, until: Stage | str, plan: Plan, generation: Generation, after: Reading
) -> bool:
    """Whether the open stage must be closed for the model: it will not be written on."""
    if generation.finish == "eos" or until != "sentence":
        return True
    stage = plan[after.open or ""]
    written = sum(s.tokens for s in parent.steps if s.stage == stage.tag)
    return written + len(generation.ids) >= stage.length or not generation.ids


def _lacking(
    until: Stage | str, plan: Plan, before: Reading, after: Reading, faults: tuple[str, ...]
) -> tuple[str, ...]:
    """The fault of not having written what was asked for, if no other names it."""
    if until == "sentence" and not after.open and after.contents == before.contents:
        ahead = next_stage(after, plan)
        return (f"missing:{ahead.tag}",) if ahead else ()
    if not isinstance(until, Stage) or until.tag in after.contents:
        return ()
    if until.optional and after.contents.keys() - before.contents.keys():
        return ()
    named = {f"missing:{until.tag}", f"skipped:{until.tag}"} & {*faults}
    return () if named else (f"missing:{until.tag}",)


def joined(chain: Chain, index: int, parts: Chain, plan: Plan, finish: Finish | None) -> Chain:
    """The child of `chain` whose one step is all that `parts`, grown from it stage by stage, has
    more; `finish` where it is not that of the last of them."""
    new = parts.steps[len(chain.steps) :]
    ended = read(parts.text, plan, complete=not parts.done)
    missing = tuple(fault for fault in ended.faults if fault.startswith("missing:"))
    step = Step(
        "".join(s.text for s in new),
        tuple(segment for s in new for segment in s.segments),
        new[-1].stage if new else "",
        sum(s.logprob for s in new),
        sum(s.tokens for s in new),
        finish or new[-1].finish,
        tuple(fault for s in new for fault in s.faults) + missing,
        {tag: score for s in new for tag, score in s.scores.items()},
    )
    return chain.grow(index, step, parts.done)
