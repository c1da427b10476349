"""Where a sentence ends, and where it does not."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cot_engine.core.boundaries import Until, sentence_end

# "|" stands where the first sentence must end; without one, none is complete yet.
CASES = [
    "It is red.| It is round.",
    "Is it red?| Yes.",
    "Stop!| Now.",
    "Pi is 3.14 or so.| Yes.",
    "Pi is 3.14",
    "It costs 3.",
    "It costs 3.| Then",
    "Shapes, e.g. circles, count.| Next.",
    "Shapes, i.e. circles.| Next.",
    "See Fig. 2.| It shows.",
    "See Figs. 2 and 3.| They show.",
    "By J. R. Smith et al. in 1990.| Then",
    "Mr. and Mrs. Smith met Dr. No.| Then",
    "No. 5 is alive.| Yes.",
    "The answer is no.| The end.",
    "Circles, squares, etc. are shapes.| So",
    "Circles, squares, etc.| The rest",
    "Circles, squares, etc. ",
    'Circles, squares, etc. "',
    "At 5 p.m. it closes.| Go.",
    "As I am I.| Then",
    "1. Count the circles.| Then",
    "\n2. Count the squares.| Then",
    "<REASONING>1. Count them.| Then",
    "**3. Count** them.| Then",
    "Steps:|\n1. Count them.",
    "Well... maybe it is.| Yes.",
    "Well...| It is.",
    "Well… maybe.| Yes.",
    "Well... ",
    'He said "stop."| Then',
    "He said “stop.”| Then",
    "(It is red.)| Then",
    "**It is red.**| Then",
    "Really?!| Yes.",
    "no period at all|\nnext line",
    "no period at all|\n\n\nnext line",
    "no period, indented|\n    next line",
    "no period at all\n",
    "no period at all\n\n",
    "windows\r|\nline",
    "\n\nIt is.| So",
    "<SUMMARY>\nIt is.| So",
    "</SUMMARY>\n\n<CAPTION> It is.| So",
    "",
    " \n ",
    "Größe 3,5 m².| Dann",
    "これは赤い。|次は",
    "「赤い。」|次は",
    "これは赤い。",
    "Voilà l'été.| Puis",
    "It is 5 cm.| So",
    "It is version 1.2.3 now.| So",
    "See example.com for more.| So",
]


@pytest.mark.parametrize("case", CASES)
def test_a_sentence_ends_where_it_should(case):
    text = case.replace("|", "")
    expected = case.find("|")
    at = sentence_end(text)
    assert at == (None if expected < 0 else expected), text[:at]


PIECES = "e.g. etc. no. 3.14 1. 2. J. Fig. a.m. ... … word Word . ! ? ) ( ” * 。 」 é I 5 -".split()
PIECES += [" ", "  ", "\n", "\n\n", "\t", "\r\n", '"', "'", "<SUMMARY>", "</SUMMARY>"]
TEXT = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@given(TEXT)
@example('etc.\n"The')
@example('etc. \n"The')
@example("Well... \n“maybe")
def test_what_is_found_in_a_prefix_stays_found(text):
    """However the text arrives, the end is the same: found once, or not before the text ends."""
    whole = sentence_end(text)
    for cut in range(len(text)):
        early = sentence_end(text[:cut])
        assert early is None or early == whole


@given(TEXT)
def test_an_end_is_inside_the_text_and_has_a_sentence_before_it(text):
    at = sentence_end(text)
    if at is not None:
        assert 0 < at < len(text)
        assert text[:at].strip()


@given(st.lists(st.sampled_from(["Red is warm.", "Is it?", "No, 3.14!"]), min_size=2, max_size=6))
def test_a_text_splits_into_its_sentences(sentences):
    text, found = " ".join(sentences), []
    while (at := sentence_end(text)) is not None:
        found.append(text[:at].strip())
        text = text[at:]
    assert [*found, text.strip()] == sentences


@pytest.mark.parametrize(
    ("until", "text", "end"),
    [
        (Until(), "anything.\nat all", None),
        (Until(("</A>",)), "x</A>y", 5),
        (Until(("</A>",)), "x</A", None),
        (Until(("</B>", "</A>")), "x</A>y</B>", 5),
        (Until(("</A>",), sentence=True), "One. Two</A>", 4),
        (Until(("</A>",), sentence=True), "One</A> two. Three", 7),
        (Until(sentence=True), "One</A>", None),
    ],
)
def test_until_ends_at_whichever_comes_first(until, text, end):
    assert until.end(text) == end


@given(TEXT, st.booleans())
def test_a_step_ends_at_the_same_place_however_its_text_arrives(text, sentence):
    until = Until(("</SUMMARY>", "</CAPTION>"), sentence)
    whole = until.end(text)
    ends = [until.end(text[:cut]) for cut in range(len(text) + 1)]
    found = [end for end in ends if end is not None]
    assert all(end == whole for end in found)
    assert (whole is None) == (not found)
