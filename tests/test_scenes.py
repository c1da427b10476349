"""The scenes world: answers recomputed by other code, determinism, the frozen set."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest

from cot_engine.scenes import (
    TEST_HASH,
    TYPES,
    content_hash,
    grade,
    grade_caption,
    parse,
    sample,
    test_set,
)
from cot_engine.scenes.world import CELL, COLOURS, FAMILIES, caption, split_of

N = 1200
NOUNS = "object|thing|shape"


@pytest.fixture(scope="module")
def problems():
    return [sample(5, i) for i in range(N)]


def looks(words: str):
    """A test for things out of an English description: "small red stars", "object at B2"."""
    words = words.strip()
    cell = re.search(r"\b[A-D][1-4]\b", words)
    if cell:
        return lambda t: t.cell == cell[0]
    named = {
        w.removesuffix("s") if w.removesuffix("s") in FAMILIES["shape"] else w
        for w in words.split()
    }
    wanted = named & {v for values in FAMILIES.values() for v in values}
    assert wanted, words
    return lambda t: wanted <= {t.size, t.colour, t.shape}


def brute_force(question: str, things) -> str:
    """The answer out of the question's wording alone, sharing no code with the generator."""
    q = re.sub(" in the picture|in the picture, ", "", question.rstrip("?."), flags=re.I)
    q = q[0].upper() + q[1:]

    def number(words: str) -> int:
        return sum(map(looks(words), things))

    def one(words: str):
        (thing,) = filter(looks(words), things)
        return thing

    for pattern in (
        rf"How many (?:{NOUNS})s are left if all the (.*) are removed",
        rf"How many (?:{NOUNS})s remain if you take away the (.*)",
        rf"If all the (.*) are removed, how many (?:{NOUNS})s are left",
        rf"Take away all the (.*)\. How many (?:{NOUNS})s are left",
        rf"How many (?:{NOUNS})s are not (.*)",
    ):
        if found := re.fullmatch(pattern, q):
            return str(len(things) - number(found[1]))
    for pattern in (
        "How many (.*) are there",
        "How many (.*) are",
        "How many (.*) do you see",
        "Count the (.*)",
        "What is the number of (.*)",
    ):
        if found := re.fullmatch(pattern, q):
            return str(number(found[1]))
    for pattern in (
        "(?:Are there|Do you see) (more|fewer) (.*) than (.*)",
        "Is the number of ()(.*) than the number of (.*)",
    ):
        if found := re.fullmatch(pattern, q):
            word, x, y = found.groups()
            if not word:
                x, word = x.rsplit(" ", 1)
            a, b = number(x), number(y)
            return "yes" if (a > b if word in ("more", "greater") else a < b) else "no"
    if found := re.fullmatch(
        r"(?:Is the|Do you see the|Would you say that the) (.*?)(?: is)? (?:to the )?"
        r"(left of|right of|above|below|higher than|lower than) the (.*)",
        q,
    ):
        a, b = one(found[1]), one(found[3])
        holds = {
            "left of": a.column < b.column,
            "right of": a.column > b.column,
            "above": a.row < b.row,
            "higher than": a.row < b.row,
            "below": a.row > b.row,
            "lower than": a.row > b.row,
        }[found[2]]
        return "yes" if holds else "no"
    if found := re.fullmatch("Is the (.*) small or large", q):
        return one(found[1]).size
    for pattern in (
        "(?:What|Which) (.*?) (?:is|does) the (.*?)(?: have)?",
        "What is the (.*?) of the (.*)",
        "Name the (.*?) of the (.*)",
    ):
        if found := re.fullmatch(pattern, q):
            return getattr(one(found[2]), found[1].replace("color", "colour"))
    for pattern in ("(?:Is there|Do you see|Does the picture show) an? (.*)", "Are there any (.*)"):
        if found := re.fullmatch(pattern, q):
            return "yes" if number(found[1]) else "no"
    raise AssertionError(f"no rule for {question!r}")


def test_answers_recomputed(problems):
    for p in problems:
        assert brute_force(p.question, p.objects) == p.answer, p


def test_same_arguments_same_problem_down_to_the_pixels():
    a, b = sample(3, 14), sample(3, 14)
    assert a == b and a.image.tobytes() == b.image.tobytes()
    assert sample(3, 15) != a and sample(4, 14).objects != a.objects
    brief = sample(3, 14, detail="brief")
    assert (brief.objects, brief.question, brief.answer) == (a.objects, a.question, a.answer)


def test_frozen_set():
    assert content_hash(test_set(1000)) == TEST_HASH


def test_splits_share_no_scene(problems):
    test = {caption(p.objects) for p in test_set(200)}
    assert not test & {caption(p.objects) for p in problems}
    assert {split_of(p.objects) for p in problems} == {"train"}
    assert {split_of(p.objects) for p in test_set(50)} == {"test"}
    assert {split_of(sample(0, i, "val").objects) for i in range(50)} == {"val"}


@pytest.mark.parametrize("detail", ["brief", "normal", "full"])
@pytest.mark.parametrize("text_only", [False, True])
def test_staged_answers_agree_with_the_objects(detail, text_only):
    for i in range(300):
        p = sample(6, i, detail=detail, text_only=text_only)
        staged = parse(p.response, p.staged)
        assert staged == p.staged
        assert ("CAPTION" in staged) is not text_only
        assert grade(p.response, p.answer) and grade(staged["CONCLUSION"], p.answer)
        if not text_only:
            assert grade_caption(staged["CAPTION"], p.objects) == (len(p.objects),) * 2
        for cell, rest in re.findall(r"([A-D][1-4]) ((?:[a-z]+ )*)", staged["REASONING"]):
            thing = next(t for t in p.objects if t.cell == cell)
            about = [w for w in rest.split() if any(w in v for v in FAMILIES.values())]
            assert set(about) <= {thing.size, thing.colour, thing.shape}
        assert re.search(rf"\b{p.answer}\.$", staged["REASONING"])
        for t in p.objects if text_only else ():
            assert t.cell in p.prompt and t.colour in p.prompt


def test_reasoning_walks_every_object_where_it_counts(problems):
    for p in problems:
        if p.type in ("count", "subtract", "compare", "exist"):
            walked = set(re.findall("[A-D][1-4]", p.staged["REASONING"]))
            assert walked == {t.cell for t in p.objects}


def test_balance():
    """No answer of a type is far more frequent than the rest, and yes and no are even."""
    problems = [sample(7, i) for i in range(6000)]
    limits = {"count": 0.3, "subtract": 0.3, "attribute": 0.15}
    for kind in TYPES:
        answers = Counter(p.answer for p in problems if p.type == kind)
        assert answers.most_common(1)[0][1] / answers.total() < limits.get(kind, 0.55), answers


def test_rendering():
    """At the middle of a cell is the colour of its object, or the background."""
    for i in range(60):
        p = sample(8, i)
        pixels = np.asarray(p.image, dtype=float)
        assert pixels.shape == (64, 64, 3)
        at = {(t.column, t.row): t for t in p.objects}
        for column in range(4):
            for row in range(4):
                y, x = row * CELL + CELL // 2, column * CELL + CELL // 2
                found = pixels[y - 1 : y + 1, x - 1 : x + 1].mean((0, 1))
                if (column, row) in at and at[column, row].size == "large":
                    aim = COLOURS[at[column, row].colour]
                    nearest = min(COLOURS.values(), key=lambda c: np.abs(found - c).sum())
                    assert nearest == aim
                elif (column, row) not in at:
                    assert found.min() > 150
    assert sample(8, 0).picture(256).size == (256, 256)
    assert sample(8, 0, text_only=True).image is None


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("1", "1", True),
        (" 1. ", "1", True),
        ("There is one red star.", "1", True),
        ("There are 12 stars.", "1", False),
        ("1 or 2", "1", False),
        ("", "1", False),
        ("Yes, there are more.", "yes", True),
        ("no", "yes", False),
        ("yes and no", "yes", False),
        ("The object at B2 is red.", "red", True),
        ("red or blue", "red", False),
        ("It is a Star", "star", True),
        ("two stars", "star", True),
        ("2 objects at D4", "2", True),
        ("<SUMMARY>2</SUMMARY><CONCLUSION>3</CONCLUSION>", "3", True),
        ("<CONCLUSION>3", "3", True),
        ("<CONCLUSION></CONCLUSION>", "3", False),
    ],
)
def test_grade(said, answer, right):
    assert grade(said, answer) is right


def test_grade_caption():
    p = sample(9, 0)
    text, n = p.staged["CAPTION"], len(p.objects)
    assert grade_caption(text, p.objects) == (n, n)
    assert grade_caption("", p.objects) == (0, n)
    assert grade_caption(text.rstrip(".") + ", A9 huge pink cat.", p.objects) == (n - 1, n)
    first = str(p.objects[0])
    assert grade_caption(text.replace(first, first[:2] + " tiny blob"), p.objects) == (n - 1, n)


def test_parse_rejects_what_is_not_the_stages():
    p = sample(9, 1)
    assert parse(p.response) == p.staged
    words = p.response.split("</CAPTION>")
    for bad in (
        "",
        words[0],
        p.response + "x",
        p.response.replace("SUMMARY", "CAPTION"),
        p.response.replace(p.staged["CONCLUSION"] + "</C", " </C"),
    ):
        assert parse(bad) is None


def test_generator_leaves_the_global_random_state_alone():
    random.seed(1)
    before = random.getstate()
    _ = sample(0, 0).image
    assert random.getstate() == before
