"""The scenes world: pictures of coloured shapes and bar charts, questions, and staged answers.

    from cot_engine.scenes import sample, test_set, grade
    problem = sample(seed=0, index=7)
    problem.image, problem.question, problem.answer, problem.response

Everything is generated and follows from (version, split, seed, index). The frozen benchmarks are
`test_set()`, "scenes-2/test", and `ood_set()`, "scenes-2/ood": more objects than in training,
combinations of colour and shape that training never shows, and other wordings. The pictures of one
split occur in no other, whatever the seed (see `world.split_of`).
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image

from cot_engine.scenes import chart_questions, questions
from cot_engine.scenes.charts import Bar, draw_bars
from cot_engine.scenes.drafts import QuestionDraft, Tell, ending, options_of
from cot_engine.scenes.grading import grade, grade_caption, parse
from cot_engine.scenes.world import OOD, SIDE, UNSEEN, USUAL, VERSION, Thing, draw_things, split_of

__all__ = [
    "HINTS",
    "OOD_HASH",
    "OOD_SET",
    "TEST_HASH",
    "TEST_SET",
    "TYPES",
    "VERSION",
    "Bar",
    "SceneProblem",
    "Thing",
    "content_hash",
    "grade",
    "grade_caption",
    "ood_set",
    "parse",
    "sample",
    "test_set",
]

TEST_SET, OOD_SET = f"{VERSION}/test", f"{VERSION}/ood"
TEST_HASH = "0ab22abbc40f8d76bf644acdf518e064e5f8975049d132c8e21f23dc20862924"
OOD_HASH = "7ed9eecc80235feca63517c5259d4bd8610c8dddc9f0121511432fa519fe528b"
"""Digests of the first 1,000 problems of each (see `content_hash`)."""

MAKERS = questions.MAKERS | chart_questions.MAKERS
TYPES = tuple(MAKERS)

# What is appended to the question for each level of detail.
HINTS = {"brief": "\nBe brief.", "normal": "", "full": "\nBe detailed."}
OPTIONS = 0.25  # share of the questions with several possible answers that are multiple choice
WORDINGS = (0.6, 0.25, 0.15)  # how often a caption names an object in each of its wordings


@dataclass(frozen=True)
class SceneProblem:
    """One generated problem. Equal ids have equal contents, down to the pixels."""

    id: str  # "scenes-2/test/0/7": version, split, seed, index
    type: str  # one of TYPES
    question: str  # as asked, with its options if it has any, without a hint
    answer: str  # canonical: "2", "yes", "red", "red and blue", "A1 and B2", or an option's letter
    objects: tuple[Thing, ...] | tuple[Bar, ...]  # in reading order
    staged: dict[str, str]  # stage name -> text, without the tags
    prompt: str  # what the user turn says: description if text only, question, hint
    text_only: bool
    image_seed: int
    tell: Tell = field(repr=False, compare=False)  # the reasoning, had these objects been seen

    def picture(self, side: int = SIDE) -> Image.Image:
        """The RGB image at `side` x `side` pixels."""
        draw: Any = draw_things if isinstance(self.objects[0], Thing) else draw_bars
        picture: Image.Image = draw(self.objects, self.image_seed, side)
        return picture

    @cached_property
    def image(self) -> Image.Image | None:
        """The 64x64 RGB image; None for a text-only problem."""
        return None if self.text_only else self.picture()

    @property
    def response(self) -> str:
        """The whole staged response a model is taught, tags included."""
        return "".join(f"<{tag}>{text}</{tag}>" for tag, text in self.staged.items())


def plain_caption(objects: tuple[Thing, ...] | tuple[Bar, ...]) -> str:
    """The objects in their most usual wording: "B1 small red star. C2 large blue circle."."""
    return " ".join(f"{thing}." for thing in objects)


def caption(rng: random.Random, objects: tuple[Thing, ...] | tuple[Bar, ...]) -> str:
    """The objects, each in one of its wordings."""
    return " ".join(f"{rng.choices(thing.wordings(), WORDINGS)[0]}." for thing in objects)


def _describe(rng: random.Random, objects: tuple[Thing, ...] | tuple[Bar, ...]) -> str:
    """The picture in words, for a problem without one."""
    if rng.random() < 0.6:
        kind = "objects" if isinstance(objects[0], Thing) else "bars"
        return f"There are these {kind}: {plain_caption(objects)}"
    return "There is " + ", ".join(f"a {thing}" for thing in objects) + "."


def _drawn(kind: str, rng: random.Random, split: str) -> QuestionDraft:
    """A draft whose picture belongs to the split."""
    setting = OOD if split == "ood" else USUAL
    while True:
        draft = MAKERS[kind](rng, setting)
        if split == "ood":
            return draft
        strange = any(isinstance(t, Thing) and (t.colour, t.shape) in UNSEEN for t in draft.objects)
        if not strange and split_of(plain_caption(draft.objects)) == split:
            return draft


def sample(
    seed: int, index: int, split: str = "train", *, detail: str = "normal", text_only: bool = False
) -> SceneProblem:
    """Problem `index` of the stream `seed` of a split; types take turns by index.

    `split` is "train", "val", "test" or "ood". `detail` ("brief", "normal", "full") and `text_only`
    change how the same problem is asked and answered, not the picture, the question or the answer.
    """
    name = f"{VERSION}/{split}/{seed}/{index}"
    rng = random.Random(name)
    kind = TYPES[index % len(TYPES)]
    draft = _drawn(kind, rng, split)
    image_seed = rng.getrandbits(48)
    question, answer = draft.question, draft.answer
    if rng.random() < 0.1:  # people write carelessly
        question = question[0].lower() + question[1:]
    if rng.random() < 0.1:
        question = question.rstrip("?.")
    if len(draft.others) == 3 and rng.random() < OPTIONS:
        options = rng.sample([draft.answer, *draft.others], 4)
        answer = "ABCD"[options.index(draft.answer)]
        listed = " ".join(f"({letter}) {o}" for letter, o in zip("ABCD", options, strict=True))
        question = f"{question}\n{listed}"
    start = "I read" if text_only else "I list"
    start += " the objects" if isinstance(draft.objects[0], Thing) else " the bars"
    summary = f"{start}{draft.goal}."
    if detail == "brief":
        goal = draft.goal.removeprefix(" and ").removeprefix(", ")
        summary = goal[0].upper() + goal[1:] + "."
    elif detail == "full":
        summary += " I check what I see at every place."
    staged = {"SUMMARY": summary}
    if not text_only:
        staged["CAPTION"] = caption(rng, draft.objects)
    told = draft.tell(draft.objects)
    assert told is not None  # of its own objects, a question has an answer
    staged["REASONING"] = told[0] + ending(told[1], options_of(question), answer)
    # A sentence that names more than the answer, another colour say, would not be graded right.
    full = detail == "full" and grade(draft.sentence, answer)
    staged["CONCLUSION"] = draft.sentence if full else answer
    described = _describe(rng, draft.objects) + " " if text_only else ""
    return SceneProblem(
        id=name,
        type=kind,
        question=question,
        answer=answer,
        objects=draft.objects,
        staged=staged,
        text_only=text_only,
        prompt=described + question + HINTS[detail],
        image_seed=image_seed,
        tell=draft.tell,
    )


def test_set(n: int = 2000) -> list[SceneProblem]:
    """The first `n` problems of the frozen held-out set, "scenes-2/test"."""
    return [sample(0, index, "test") for index in range(n)]


test_set.__test__ = False  # type: ignore[attr-defined]  # for pytest: no test, by its name


def ood_set(n: int = 1000) -> list[SceneProblem]:
    """The first `n` problems of the frozen out-of-distribution set, "scenes-2/ood"."""
    return [sample(0, index, "ood") for index in range(n)]


def content_hash(problems: list[SceneProblem]) -> str:
    """SHA-256 over ids, questions, answers, pictures' facts and image seeds.

    Pixels are left out: another version of Pillow may round an edge differently.
    """
    rows = [
        [p.id, p.type, p.prompt, p.answer, plain_caption(p.objects), p.image_seed] for p in problems
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
