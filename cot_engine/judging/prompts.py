"""What is said to a model, to make it answer in stages and to make it judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cot_engine.core.chain import Chain
from cot_engine.core.grammar import read
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Prompt
from cot_engine.core.stages import Detail, Plan, Stage

if TYPE_CHECKING:
    from cot_engine.images.load import Image
    from cot_engine.judging.protocol import Case

Form = Literal["full", "brief"]  # of a judge's turn: with instructions, or for one trained to judge
FORMS: tuple[Form, ...] = ("full", "brief")
VERDICTS = ("1", "2")  # what a judge by logits answers: the number of the better one

Mode = str  # "trained": the model opens the stages itself; "prompted": each opening tag is forced

DETAIL_HINTS: dict[Detail, str] = {"brief": "Be brief.", "normal": "", "full": "Be detailed."}
"""Appended to the question for a model trained on the tags; the bundled one knows these words."""

_DETAIL_RULES: dict[Detail, str] = {
    "brief": "Keep every part as short as you can; the last one is the bare answer.",
    "normal": "",
    "full": "Be thorough in every part; the last one is a full sentence with the reason.",
}


def answer_prompt(problem: Problem, plan: Plan, mode: Mode, detail: Detail) -> Prompt:
    """The user's turn: the question alone for a model trained on the tags, else with the rules."""
    if mode == "trained":
        hint = DETAIL_HINTS[detail]
        text = f"{problem.question}\n{hint}" if hint else problem.question
        return Prompt(text, problem.images)
    rules = "\n".join(f"{s.open}{s.purpose}{s.close}" for s in plan)
    text = (
        f"{problem.question}\n\n"
        "Answer in tagged parts, in this order, each written once as shown, nothing outside the"
        f" tags:\n{rules}"
    )
    if extra := _DETAIL_RULES[detail]:
        text += f"\n{extra}"
    return Prompt(text, problem.images)


def separator(chain: Chain, mode: Mode) -> str:
    """What stands between one stage's end and the next one's forced opening tag.

    What the model itself wrote there, if it did; nothing at the start of the turn.
    """
    text = chain.text
    if not text:
        return ""
    _, _, after = text.partition(">")
    while "</" in after:
        _, _, after = after.partition("</")
        _, _, after = after.partition(">")
        gap = after[: len(after) - len(after.lstrip())]
        if after.strip():
            return gap
    return "\n\n" if mode == "prompted" else ""


def common_steps(first: Chain, second: Chain) -> int:
    """How many leading steps two chains share."""
    shared = 0
    for a, b in zip(first.steps, second.steps, strict=False):
        if a is not b and a != b:
            break
        shared += 1
    return shared


def since(chain: Chain, steps: int, plan: Plan) -> str:
    """What a chain wrote after its first `steps` steps, as a judge reads it.

    Tags are dropped where it is one stage or less; several stages are labelled by name.
    """
    parts = _parts_since(chain, steps, plan)
    if len(parts) <= 1:
        return next(iter(parts.values()), _raw_since(chain, steps))
    return "\n".join(f"{tag}: {text}" for tag, text in parts.items())


def _parts_since(chain: Chain, steps: int, plan: Plan) -> dict[str, str]:
    """What a chain wrote after its first `steps` steps, by stage."""
    before = "".join(step.text for step in chain.steps[:steps])
    earlier, now = read(before, plan), read(chain.text, plan)
    parts = {tag: text for tag, text in now.contents.items() if tag not in earlier.contents}
    if now.open:
        parts[now.open] = now.opened.strip()
    if earlier.open and earlier.open in parts:  # a sentence in a stage that was begun before
        whole, done = parts[earlier.open], earlier.opened.strip()
        parts[earlier.open] = whole.removeprefix(done).strip() or whole
    return parts


def _raw_since(chain: Chain, steps: int) -> str:
    return "".join(step.text for step in chain.steps[steps:]).strip()


WHOLE_QUESTION = "Which one answers the question better and with fewer errors?"
SENTENCE_QUESTION = "Which one continues the answer better and with fewer errors?"


REPLY_NUMBER = "Reply with the number of the better attempt, 1 or 2, and nothing else."
REPLY_RATIONALE = (
    "First give your reason in a few sentences. Then write, on a line of its own, 'Choice: 1' or"
    " 'Choice: 2'."
)


def judge_turn(
    case: Case, pair: tuple[Chain, Chain], form: Form = "full", reply: str = REPLY_NUMBER
) -> tuple[Prompt, str]:
    """The user's turn in which an ordered pair is compared: what pairs that begin alike share, and
    this pair's tail. What a judge is asked, and what one is trained on, is made here alone.

    The "full" form says what to do, and how to `reply`. The "brief" one says nothing of the kind,
    for models trained to answer it with one of VERDICTS; it goes on as the answer did, question
    and stages so far token by token, so that a model whose chat format has a line feed and nothing
    else there has read them already:

        {question}
        {the stages so far, as they were written}
        Compare:
        1: {first}
        2: {second}

    Without its tags where it is one stage or less; several stages, and wholes, as they were
    written.
    """
    shared = 0 if case.about == "whole" else common_steps(*pair)
    before = "".join(step.text for step in pair[0].steps[:shared])
    if form == "brief":
        text = f"{case.problem.question}\n{before}\n" if before else f"{case.problem.question}\n"
        first, second = (_briefly(case, chain, shared) for chain in pair)
        return Prompt(f"{text}Compare:\n", case.images), f"1: {first}\n2: {second}"
    reading = read(before, case.plan)
    parts = dict(reading.contents)
    if reading.open:
        parts[reading.open] = reading.opened.strip()
    text = "\n".join(f"{tag}: {content}" for tag, content in parts.items())
    question = judge_question(case.about, case.stage)
    first, second = (since(chain, shared, case.plan) for chain in pair)
    head = judge_head(case.problem, case.images, text, question, reply)
    return head, judge_tail(first, second)


def _briefly(case: Case, chain: Chain, shared: int) -> str:
    parts = _parts_since(chain, shared, case.plan)
    if case.about == "whole" or len(parts) > 1:
        return _raw_since(chain, shared)
    return since(chain, shared, case.plan)


def judge_head(
    problem: Problem, images: tuple[Image, ...], context: str, question: str, how_to_reply: str
) -> Prompt:
    """The part of a judge's turn that all pairs of a selection share."""
    looked = " about the image" if images else ""
    text = f"Two attempts at a question{looked} are compared.\nQuestion: {problem.question}\n"
    if context:
        text += f"So far:\n{context}\n"
    text += f"{question} {how_to_reply}\n"
    return Prompt(text, images)


def judge_tail(first: str, second: str) -> str:
    """The part that differs from pair to pair."""
    return f"Attempt 1:\n{first}\nAttempt 2:\n{second}\n"


def judge_question(about: str, stage: Stage | None) -> str:
    if about == "whole":
        return WHOLE_QUESTION
    return stage.question if stage is not None else SENTENCE_QUESTION
