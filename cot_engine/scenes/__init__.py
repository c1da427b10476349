"""The scenes world: pictures of coloured shapes, questions, and staged answers, all generated.

    from cot_engine.scenes import sample, test_set, grade
    problem = sample(seed=0, index=7)
    problem.image, problem.question, problem.answer, problem.response

Everything follows from (version, split, seed, index). The frozen benchmark "scenes-1/test" is
`test_set()`: its scenes occur in no other split, whatever the seed (see `world.split_of`), and
`content_hash` over its first 1,000 problems is `TEST_HASH`.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from .grading import grade, grade_caption, parse
from .questions import MAKERS, TYPES
from .world import SIDE, VERSION, Thing, caption, render, split_of

__all__ = [
    "HINTS",
    "TEST_HASH",
    "TEST_SET",
    "TYPES",
    "VERSION",
    "SceneProblem",
    "Thing",
    "content_hash",
    "grade",
    "grade_caption",
    "parse",
    "sample",
    "test_set",
]

TEST_SET = f"{VERSION}/test"
TEST_HASH = "58ea88bb7af8ea295e329f640090788c5993654cb78dc5c7341b7990851e7900"

# What is appended to the question for each level of detail.
HINTS = {"brief": "\nBe brief.", "normal": "", "full": "\nBe detailed."}


@dataclass(frozen=True)
class SceneProblem:
    """One generated problem. Equal ids have equal contents, down to the pixels."""

    id: str  # "scenes-1/test/0/7": version, split, seed, index
    type: str  # one of TYPES
    question: str  # as asked, without any hint
    answer: str  # canonical and lower case: "2", "yes", "red"
    objects: tuple[Thing, ...]  # in reading order
    staged: dict[str, str]  # stage name -> text, without the tags
    prompt: str  # what the user turn says: description if text only, question, hint
    text_only: bool
    image_seed: int

    def picture(self, side: int = SIDE) -> Image.Image:
        """The RGB image at `side` x `side` pixels."""
        return render(self.objects, self.image_seed, side)

    @cached_property
    def image(self) -> Image.Image | None:
        """The 64x64 RGB image; None for a text-only problem."""
        return None if self.text_only else self.picture()

    @property
    def response(self) -> str:
        """The whole staged response a model is taught, tags included."""
        return "".join(f"<{tag}>{text}</{tag}>" for tag, text in self.staged.items())


def _describe(rng: random.Random, things: tuple[Thing, ...]) -> str:
    """The scene in words, for a problem without a picture."""
    if rng.random() < 0.6:
        return "There are these objects: " + caption(things)
    parts = [f"a {t.size} {t.colour} {t.shape} at {t.cell}" for t in things]
    return "There is " + ", ".join(parts) + "."


def sample(
    seed: int, index: int, split: str = "train", *, detail: str = "normal", text_only: bool = False
) -> SceneProblem:
    """Problem `index` of the stream `seed` of a split; types take turns by index.

    `detail` ("brief", "normal", "full") and `text_only` change how the same problem is asked
    and answered, not the scene, the question or the answer.
    """
    name = f"{VERSION}/{split}/{seed}/{index}"
    rng = random.Random(name)
    kind = TYPES[index % len(TYPES)]
    while True:
        draft = MAKERS[kind](rng)
        if split_of(draft.things) == split:
            break
    image_seed = rng.getrandbits(48)
    question = draft.question
    if rng.random() < 0.1:  # people write carelessly
        question = question[0].lower() + question[1:]
    if rng.random() < 0.1:
        question = question.rstrip("?.")
    start = "I read the objects" if text_only else "I list the objects"
    summary = f"{start}{draft.goal}."
    if detail == "brief":
        goal = draft.goal.removeprefix(" and ").removeprefix(", ")
        summary = goal[0].upper() + goal[1:] + "."
    elif detail == "full":
        summary += " I check the objects one by one and say what I see at every place."
    staged = {"SUMMARY": summary}
    if not text_only:
        staged["CAPTION"] = caption(draft.things)
    staged["REASONING"] = draft.reasoning
    staged["CONCLUSION"] = draft.sentence if detail == "full" else draft.answer
    described = _describe(rng, draft.things) + " " if text_only else ""
    return SceneProblem(
        id=name,
        type=kind,
        question=question,
        answer=draft.answer,
        objects=draft.things,
        staged=staged,
        text_only=text_only,
        prompt=described + question + HINTS[detail],
        image_seed=image_seed,
    )


def test_set(n: int = 1000) -> list[SceneProblem]:
    """The first `n` problems of the frozen held-out set, "scenes-1/test"."""
    return [sample(0, index, "test") for index in range(n)]


test_set.__test__ = False  # the name is not meant for pytest


def content_hash(problems: list[SceneProblem]) -> str:
    """SHA-256 over ids, questions, answers, scenes and image seeds.

    Pixels are left out: another version of Pillow may round an edge differently.
    """
    rows = [[p.id, p.type, p.prompt, p.answer, caption(p.objects), p.image_seed] for p in problems]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
