"""Answers made comparable: what is the same, and what must stay apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_engine.core.answers import majority, normalise_answer

SAME = [
    ["red", "Red", " RED. ", '"red"', "“Red”", "**red**", "`red`", "The answer is red.", "red\n"],
    ["red cube", "the red cube", "A red cube", "Red  cube!", "So the final answer is: red cube."],
    ["a", "A", "(A)", "A.", "a)", "(a).", "Option A", "The correct answer is (A).", "Ａ", "$A$"],
    ["A: red cube", "(A) red cube", "A. Red cube.", "A) the red cube", "Answer: A: red cube"],
    ["1000", "1,000", "1,000.0", "1000.", "$1000$", "1{,}000", "The answer is 1,000."],
    ["3", "3.0", "3.00", r"\boxed{3}", r"$\boxed{3}$.", r"\(3\)", "３", r"\text{3}", "**3**"],
    ["3.5 cm", "3.50 cm", "3.5  CM", r"3.5\text{ cm}"],
    ["0.5", ".5", "0.50"],
    ["-5", "−5", "–5", "-5.0"],
    ["1/2", "½", r"\frac{1}{2}", r"\boxed{\frac{1}{2}}", r"\dfrac{1}{2}"],
    ["1 1/2", "1½", r"1\frac{1}{2}"],
    ["50%", "50 %", r"50\%", "50.0%"],
    ["x^2", "x²"],
    ["$5", r"\$5", "$5.00"],
    ["yes", "Yes!", "YES", "Yes."],
    ["1000, 2000", "1,000, 2,000"],
    ["H2O", "H₂O"],
]
APART = [
    *[group[0] for group in SAME],
    *["red cubes", "not red", "A: blue cube", "B", "B: red cube", "A and B", "the A", "minor key"],
    *["5", "5!", "5%", "5'", '5"', "5 cm", "5 mW", "5 MW", "5 m", "5 M", "-5 m", "x2", "x^-1"],
    *["x-1", "1.5", "11/2", "1,00", "0,123", "1.2.3", "1.2.30", "v1.0", "v1", "(1, 2)", "[1, 2]"],
    *["1, 2", "12", "Aa", "aa", "AA", "A minor", "A major", "no", "none", "", "?", "$5 and $6"],
    *["100", "10000", "1e3", "3 cm", "3.05", "3.5", "30", "003", "x^23", "2^3", "23", "<3", ">3"],
]


@pytest.mark.parametrize("group", SAME, ids=lambda group: group[0])
def test_the_same_answer_in_other_words(group):
    assert {normalise_answer(text) for text in group} == {normalise_answer(group[0])}


def test_other_answers_stay_apart():
    seen: dict[str, str] = {}
    for text in APART:
        other = seen.setdefault(normalise_answer(text), text)
        assert other == text, f"{other!r} and {text!r} both became {normalise_answer(text)!r}"


PIECES = "A a b . , : ; ! ? $ { } ( ) [ ] * _ ` ' \" 0 1 23 ½ ² ⁻ % İ Σ ſ - − \\ /".split()
PIECES += [
    *[" ", "the ", "an ", "The answer is ", "option ", r"\boxed{", r"\text{", r"\frac{1}{2}"],
    *["**", r"\(", r"\)", "\u0308", "1,000", "3.0", " mW", "\u2028"],
]
SOUP = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@given(SOUP)
def test_doing_it_twice_changes_nothing(text):
    once = normalise_answer(text)
    assert normalise_answer(once) == once
    assert once == once.strip()


@given(SOUP)
def test_something_stays_something(text):
    assert bool(normalise_answer(text)) == bool(text.strip())


@given(st.integers(-(10**9), 10**9))
def test_integers_keep_their_value_however_written(number):
    for text in (f"{number:,}", f"{number}.0", f" {number}. ", f"The answer is {number}."):
        assert normalise_answer(text) == str(number)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_other_decimals_stay_apart(a, b):
    x, y = f"{a / 100:.2f}", f"{b / 100:.2f}"
    assert (normalise_answer(x) == normalise_answer(y)) == (a == b)


# --- voting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "agreeing"),
    [
        ([], ()),
        (["red"], (0,)),
        (["red", "blue", "Red."], (0, 2)),
        (["blue", "red", "Red."], (1, 2)),
        (["red", "blue"], (0,)),  # the first
        (["", "", "red"], (2,)),
        (["", ""], (0, 1)),
        (["(A)", "B", "b.", "B: blue"], (1, 2)),
    ],
)
def test_majority(texts, agreeing):
    assert majority(texts) == agreeing


def test_weights_are_votes_and_tie_decides_among_equals():
    assert majority(["red", "blue", "blue"], weights=[3, 1, 1]) == (0,)
    assert majority(["red", "blue"], weights=[1, 1], tie=[0.1, 0.2]) == (1,)
    assert majority(["red", "blue"], weights=[2, 1], tie=[0.1, 0.2]) == (0,)
    assert majority(["red", "red", "blue", "blue"], tie=[0.2, 0.2, 0.3, 0.0]) == (0, 1)


@given(st.lists(st.sampled_from(["red", "Red.", "blue", "3", "3.0", ""]), max_size=8))
def test_no_other_answer_has_more_votes(texts):
    agreeing = majority(texts)
    keys = [normalise_answer(text) for text in texts]
    if not texts:
        assert agreeing == ()
        return
    key = keys[agreeing[0]]
    assert agreeing == tuple(i for i, k in enumerate(keys) if k == key)
    others = [len(list(g)) for k, g in itertools.groupby(sorted(keys)) if k]
    assert not others or len(agreeing) == max(others)
