"""The scenes world: answers recomputed by other code, determinism, the frozen sets."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from brute_force import brute_force, parted

from cot_engine.scenes import (
    OOD_HASH,
    TEST_HASH,
    TYPES,
    Bar,
    Thing,
    content_hash,
    grade,
    grade_caption,
    ood_set,
    parse,
    plain_caption,
    sample,
    test_set,
)
from cot_engine.scenes.checking import mark_caption, mark_reasoning
from cot_engine.scenes.corruption import corrupt_objects
from cot_engine.scenes.drafts import concluded, missed, options_of
from cot_engine.scenes.guesses import wrong_guess
from cot_engine.scenes.world import CELL, COLOURS, UNSEEN, split_of

N = 1800


@pytest.fixture(scope="module")
def problems():
    return [sample(5, i) for i in range(N)]


@pytest.fixture(scope="module")
def strange():
    return ood_set(900)


def test_answers_recomputed(problems, strange):
    for p in (*problems, *strange):
        found = brute_force(p.question, p.objects)
        assert parted(found) == parted(p.answer), p


def test_same_arguments_same_problem_down_to_the_pixels():
    a, b = sample(3, 14), sample(3, 14)
    assert a == b and a.image.tobytes() == b.image.tobytes()
    assert sample(3, 15) != a and sample(4, 14).objects != a.objects
    brief = sample(3, 14, detail="brief")
    assert (brief.objects, brief.question, brief.answer) == (a.objects, a.question, a.answer)


def test_frozen_set():
    assert content_hash(test_set(1000)) == TEST_HASH
    assert content_hash(ood_set(1000)) == OOD_HASH
    assert len(test_set()) == 2000


def test_splits_share_no_picture(problems):
    test = {plain_caption(p.objects) for p in test_set(400)}
    assert not test & {plain_caption(p.objects) for p in problems}
    for split in ("train", "val", "test"):
        some = [sample(0, i, split) for i in range(90)]
        assert {split_of(plain_caption(p.objects)) for p in some} == {split}


def test_out_of_distribution_is_what_training_never_shows(problems, strange):
    def combinations_of(some):
        things = [t for p in some for t in p.objects if isinstance(t, Thing)]
        return {(t.colour, t.shape) for t in things}

    def begins(p):
        return " ".join(p.question.lower().split()[:3])

    def most(some, kind):
        return {len(p.objects) for p in some if isinstance(p.objects[0], kind)}

    assert not combinations_of(problems) & UNSEEN
    assert len(combinations_of(problems)) == 40 - len(UNSEEN)
    assert combinations_of(strange) >= UNSEEN
    assert max(most(problems, Thing)) < min(most(strange, Thing))
    assert max(most(problems, Bar)) < min(most(strange, Bar))
    for kind in TYPES:
        usual = {begins(p) for p in problems if p.type == kind}
        assert {begins(p) for p in strange if p.type == kind} - usual


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
        if not text_only:
            assert all(m.true for m in mark_caption(staged["CAPTION"], p.objects))
        assert all(m.true for m in mark_reasoning(staged["REASONING"], p)), p
        assert re.search(rf"\b{p.answer}\.$", staged["REASONING"])
        for t in p.objects if text_only else ():
            assert str(t) in p.prompt


def test_reasoning_walks_every_object_where_it_counts(problems):
    for p in problems:
        if p.type in ("count", "subtract", "compare") or (p.type, p.answer) == ("exist", "no"):
            walked = set(re.findall("[A-D][1-4]", p.staged["REASONING"]))
            assert walked == {t.cell for t in p.objects}


def test_balance():
    """No answer of a type is far more frequent than the rest, and yes and no are even."""
    problems = [sample(7, i) for i in range(9000)]
    for kind in TYPES:
        answers = Counter(p.answer for p in problems if p.type == kind and "\n" not in p.question)
        even = set(answers) == {"yes", "no"}
        assert answers.most_common(1)[0][1] / answers.total() < (0.57 if even else 0.3), answers
    letters = Counter(p.answer for p in problems if "\n" in p.question)
    assert set(letters) == set("ABCD") and max(letters.values()) / letters.total() < 0.28
    assert 0.1 < letters.total() / len(problems) < 0.25


def test_marks_find_what_is_false(problems):
    for p in problems[:360]:
        caption, reasoning = p.staged["CAPTION"], p.staged["REASONING"]
        first = p.objects[0]
        other = next(c for c in COLOURS if c not in caption)
        wrong = caption.replace(first.colour, other, 1)
        assert not mark_caption(wrong, p.objects)[0].true
        assert [m.true for m in mark_caption(wrong, p.objects)].count(False) == 1
        assert not mark_caption(caption.partition(". ")[0] + ".", p.objects)[-1].true
        assert not mark_reasoning(reasoning.rpartition("So ")[0] + "So 99.", p)[-1].true
    ends = [(m.start, m.end) for m in mark_caption(caption, p.objects)]
    assert ends[0][0] == 0 and ends[-1][1] == len(caption)
    assert all(end == start for (_, end), (start, _) in pairwise(ends))


def test_rendering():
    """At the middle of a cell is the colour of its object, or the background."""
    for i in range(180):
        p = sample(8, i)
        if isinstance(p.objects[0], Bar):
            continue
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
    chart = next(p for p in (sample(8, i) for i in range(18)) if isinstance(p.objects[0], Bar))
    pixels, slot = np.asarray(chart.picture(256), dtype=float), 240 / len(chart.objects)
    for i, bar in enumerate(chart.objects):  # under the middle of its top is a bar, above it none
        x, top = round(8 + (i + 0.5) * slot), round(4 * (61 - 4.7 * bar.height))
        inside = pixels[top + 6 : top + 12, x - 2 : x + 3].mean((0, 1))
        nearest = min(COLOURS, key=lambda c: np.abs(inside - COLOURS[c]).sum())
        assert nearest == bar.colour
        if top > 20:
            assert pixels[top - 12 : top - 6, x - 2 : x + 3].mean() > 150
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
        ("blue and red", "red and blue", True),
        ("red, blue", "red and blue", True),
        ("red and blue and green", "red and blue", False),
        ("red", "red and blue", False),
        ("D4 and A1", "A1 and D4", True),
        ("A1 and D3", "A1 and D4", False),
        ("(B)", "B", True),
        ("B1 and A1", "A", False),
        ("A or B", "A", False),
        ("a red star", "A", False),
    ],
)
def test_grade(said, answer, right):
    assert grade(said, answer) is right


@pytest.mark.parametrize("index", [0, 9])  # things and bars
def test_grade_caption(index):
    p = sample(9, index)
    text, n = plain_caption(p.objects), len(p.objects)
    assert grade_caption(text, p.objects) == (n, n)
    for form in range(3):
        said = " ".join(t.wordings()[form] + "." for t in p.objects)
        assert grade_caption(said, p.objects) == (n, n)
    assert grade_caption("", p.objects) == (0, n)
    assert grade_caption(text + " A9 huge pink cat.", p.objects) == (n - 1, n)
    first = str(p.objects[0])
    assert grade_caption(text.replace(first, "tiny blob"), p.objects) == (n - 1, n)
    assert grade_caption(f"{text} {first}.", p.objects) == (n - 1, n)


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


def test_wrong_guesses_are_mostly_wrong_in_what_they_conclude_alone(problems):
    rng, made, honest = random.Random(0), Counter(), Counter()
    for p in problems:
        guess = wrong_guess(rng, p)
        if guess is None:
            continue
        reasoning, conclusion = guess
        made[p.type] += 1
        assert not grade(conclusion, p.answer)
        marks = mark_reasoning(reasoning, p)
        assert not marks[-1].true
        found = reasoning.index("So ")
        honest[p.type] += all(mark.true for mark in marks if mark.start < found)
    assert set(made) == {
        *("twins", "shared", "rank", "above", "pair-sum", "pair-gap", "triple-sum")
    }
    assert min(made.values()) > 40
    for kind in ("twins", "pair-sum", "pair-gap", "triple-sum"):
        assert 0.6 < honest[kind] / made[kind] < 0.95, (kind, honest, made)


def test_reasonings_are_told_of_other_objects_too(problems):
    """Eyes that see another shape come to the answer of a scene that has it, by claims that are
    true of it."""
    rng, compared, changed = random.Random(0), Counter(), Counter()
    for p in problems:
        believed = corrupt_objects(rng, p.objects, 1)
        told = p.tell(believed)
        try:
            wanted = brute_force(p.question.partition("\n")[0], believed)
        except (ValueError, KeyError):  # none or several are what is asked about
            continue
        if p.type == "gap" and int(wanted) <= 0:
            assert told is None
            continue
        body, answer = told
        assert parted(answer) == parted(wanted), (p, believed, body)
        seen_so = replace(p, objects=believed, staged={"REASONING": f"{body}So {answer}."})
        claims = [m for m in mark_reasoning(body, seen_so) if m.end < len(body)]
        assert all(m.true for m in claims), (p, believed, body)
        compared[p.type] += 1
        right = options_of(p.question).get(p.answer, p.answer)
        changed[p.type] += parted(answer) != parted(right)
    assert min(compared[kind] for kind in TYPES) > 20, compared
    assert set(+changed) == set(TYPES) and sum(changed.values()) > 200, changed


OPTIONS = {"A": "5", "B": "3", "C": "red and blue", "D": "7"}


def test_what_is_found_ends_in_its_option_and_what_is_none_in_any():
    rng = random.Random(0)
    assert concluded(rng, "4", {}) == ("So 4.", "4")
    assert concluded(rng, "3", OPTIONS) == ("So 3. A 5. B 3. So B.", "B")
    assert concluded(rng, "blue and red", OPTIONS)[1] == "C"
    ends = Counter(concluded(rng, "9", OPTIONS) for _ in range(200))
    assert ends.most_common(1)[0][0] == ("So 9. A 5. B 3. C red and blue. D 9. So D.", "D")
    assert {letter for _, letter in ends} == set("ABCD")


def test_what_is_found_can_be_passed_or_missed():
    rng = random.Random(0)
    ends = {missed(rng, "3", OPTIONS) for _ in range(200)}
    assert ends == {
        ("So 3. A 5. So A.", "A"),
        ("So 3. A 5. B 3. C red and blue. So C.", "C"),
        ("So 3. A 5. B 3. C 3. So C.", "C"),
        ("So 3. A 5. B 3. C red and blue. D 7. So D.", "D"),
        ("So 3. A 5. B 3. C red and blue. D 3. So D.", "D"),
    }


def test_marks_find_what_a_walk_passes_over_or_numbers_wrongly(problems):
    """A reasoning that leaves an object out says nothing false, but the claim that passes it is."""
    passed = Counter()
    for p in problems[:900]:
        claims = re.findall(r"[^.]+\. ?", p.staged["REASONING"])
        about = [i for i, c in enumerate(claims) if re.match(r"([A-D][1-4]|[a-z]+) (?!is )\w", c)]
        walks = p.type in ("count", "subtract", "exist", "attribute")
        if walks and len(about) > 1:
            gone = about[0]
            marks = mark_reasoning("".join(claims[:gone] + claims[gone + 1 :]), p)
            assert [m.true for m in marks].count(False) == 1 and not marks[gone].true, p
            passed[p.type] += 1
        if p.type in ("count", "shared") and re.search(r" [12]\. $", claims[0]):
            renumbered = claims[0].replace(" 1.", " 2.")
            marks = mark_reasoning("".join([renumbered, *claims[1:]]), p)
            assert [m.true for m in marks].count(False) == 1 and not marks[0].true, p
            passed[p.type, "number"] += 1
    assert len(passed) == 6 and min(passed.values()) > 5, passed
