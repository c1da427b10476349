"""A Problem from what a user gave, and what its judge is shown of it."""

from __future__ import annotations

import hashlib
from typing import Any

from cot_engine.core.options import SearchOptions
from cot_engine.core.problem import Problem
from cot_engine.core.requests import BackendInfo
from cot_engine.errors import InputError, shown
from cot_engine.images.download import AllowUrl
from cot_engine.images.load import Image, load_image

MAX_QUESTION = 20_000
"""Characters. It is some 5,000 tokens of English: beyond it the question is the wrong place."""


def problem_of(image: Any, question: str | None, allow_url: AllowUrl) -> Problem:
    """A Problem from what the user gave, if it is none already. Its id is then a digest of
    question and images."""
    if isinstance(image, Problem) and question is None:
        return check_problem(image)
    question = check_question(question)
    if image is None:
        given: list[Any] = []
    else:
        given = list(image) if isinstance(image, (list, tuple)) else [image]
    images = tuple(load_image(item, allow_url=allow_url) for item in given)
    text = "|".join([question, *(image.digest for image in images)])
    return Problem(hashlib.sha256(text.encode()).hexdigest()[:12], question, images)


def check_number_of_images(problem: Problem, info: BackendInfo) -> None:
    """Raises InputError for more images than the model takes."""
    if len(problem.images) > info.max_images:
        raise InputError(
            f"The problem has {len(problem.images)} images; {info.model} takes at most"
            f" {info.max_images}.",
            "Give fewer images, or a model that takes several.",
        )


def judge_images(problem: Problem, options: SearchOptions) -> tuple[Image, ...]:
    """What the judge sees: the images, or the controls that show whether it looks."""
    match options.judge_image:
        case "blank":
            return tuple(grey(image.size) for image in problem.images)
        case "swap":
            return tuple(other(image, k) for k, image in enumerate(problem.images))
        case _:
            return problem.images


def check_question(question: str | None) -> str:
    """The question as it came, if it can be asked. Raises InputError."""
    if not isinstance(question, str):
        raise InputError(f"The question is a {type(question).__name__}.", "Give a text.")
    if not question.strip():
        raise InputError("The question is empty.", "Write what you want to know.")
    if len(question) > MAX_QUESTION:
        raise InputError(
            f"The question has {len(question):,} characters; the limit is {MAX_QUESTION:,}.",
            "Shorten it.",
        )
    try:
        question.encode()
    except UnicodeEncodeError:
        raise InputError(
            "The question holds bytes that are not UTF-8.", "Write it in UTF-8."
        ) from None
    return question


def check_problem(problem: Problem) -> Problem:
    """The problem as it came, if it can be solved. Raises InputError."""
    if not isinstance(problem.id, str) or not problem.id:
        raise InputError(f"A problem's id is a {type(problem.id).__name__}.", "Give a text.")
    check_question(problem.question)
    if not isinstance(problem.images, tuple):
        raise InputError(
            f"The images of problem {shown(problem.id)} are a {type(problem.images).__name__}.",
            "Give a tuple of what load_image() returns.",
        )
    for image in problem.images:
        if not isinstance(image, Image):
            raise InputError(
                f"An image of problem {shown(problem.id)} is a {type(image).__name__}.",
                "Read it with load_image(), or give the image and the question as a pair.",
            )
    return problem


def grey(size: tuple[int, int]) -> Image:
    """A picture that shows nothing."""
    from PIL import Image as Pillow

    return load_image(Pillow.new("RGB", size, (128, 128, 128)))


def other(image: Image, index: int) -> Image:
    """A scene that has nothing to do with `image`, at its size; the same one every time."""
    from cot_engine import scenes

    seed = int(image.digest[:8], 16)
    picture = scenes.sample(seed, index, "val").image
    assert picture is not None  # none of these is told in words alone
    return load_image(picture.resize(image.size))
