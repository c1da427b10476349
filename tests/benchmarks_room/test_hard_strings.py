"""What each set of rules makes of strings that are hard to read, written down beforehand.

The expected results are worked out from the rules as they are described, by hand: None is what a
set leaves open, Z that it says none of the options is meant.
"""

from dataclasses import replace

import pytest

from cot_engine.benchmarks import choice, conclusion, mathvista, relaxed, yes_no
from cot_engine.benchmarks.mathvista import Asked
from cot_engine.benchmarks.questions import Question
from cot_engine.benchmarks.rulesets import RULE_SETS

COLOURS = {"A": "red", "B": "blue", "C": "green", "D": "None"}
PEOPLE = {"A": "male", "B": "female"}
CITIES = {"A": "黄鹤楼", "B": "天坛", "C": "故宫", "D": "岳阳楼"}
LONG = "First I look at the ball. It lies on grass, which is not what was asked. "
STAGED = "<SUMMARY>A plan.</SUMMARY><REASONING>A ball is red.</REASONING><CONCLUSION>B</CONCLUSION>"
# text, options, 2024, 2026, conclusion
CHOICES = [
    ("B", COLOURS, "B", "B", "B"),
    ("b", COLOURS, None, None, "B"),
    ("(B)", COLOURS, "B", "B", "B"),
    ("B.", COLOURS, "B", "B", "B"),
    ("**B**", COLOURS, "B", "B", "B"),
    ("**B. blue**", COLOURS, "B", "B", "B"),
    (r"\boxed{B}", COLOURS, "B", "B", "B"),
    (r"$\boxed{\text{B}}$", COLOURS, "B", "B", "B"),
    ("Answer: B", COLOURS, "B", "B", "B"),
    ("The answer is B", COLOURS, "B", "B", "B"),
    ("A dog is in it", COLOURS, "A", None, None),
    ("A dog is there", COLOURS, "A", "A", None),
    ("A dog stands on the lawn beside a house", COLOURS, "A", None, None),
    ("It is a blue ball", COLOURS, "B", "B", "B"),
    ("The answer is a blue ball", COLOURS, "B", "A", "B"),  # "is a" says A in 2026
    ("The answer is clearly red", COLOURS, "A", "C", "A"),  # and "is cl..." says C
    ("B, because A is wrong", COLOURS, None, None, None),
    ("The correct answer is **B**. Here is why: A is wrong", COLOURS, None, "B", None),
    ("A or B", COLOURS, None, None, None),
    ("A, B or Z", COLOURS, None, None, None),
    ("A and B are both right", COLOURS, None, None, None),
    ("red or blue", COLOURS, None, None, None),
    ("blue", COLOURS, "B", "B", "B"),
    ("BLUE!", COLOURS, "B", "B", "B"),
    ("D", COLOURS, "D", "D", "D"),
    ("None", COLOURS, "D", "D", "D"),
    ("none of them", COLOURS, "D", "D", "D"),
    ("N/A", {"A": "12", "B": "N/A"}, "B", "B", "B"),
    ("female", PEOPLE, None, None, "B"),  # "male" is in it
    ("She is female.", PEOPLE, None, None, "B"),
    ("Cannot determine the answer", COLOURS, "Z", "Z", None),
    ("I can't process this file.", COLOURS, "Z", "Z", None),
    ("Sorry, I can't help with images of people yet. B", COLOURS, "Z", "Z", "B"),
    ("I am sorry, I cannot tell.", COLOURS, None, None, None),
    ("Z", COLOURS, "Z", "Z", None),
    ("Failed to obtain answer via API. B", COLOURS, None, None, "B"),
    (LONG + "So the answer is B", COLOURS, "B", "B", "B"),
    (LONG + "So B it is, as I have now said", COLOURS, "B", None, "B"),
    (LONG + "It must be blue.", COLOURS, "B", None, "B"),  # too long for a text to count
    ("B " + LONG, COLOURS, "B", None, "B"),
    ("C. 故宫", CITIES, "C", "C", "C"),
    ("答案是故宫", CITIES, "C", "C", "C"),
    ("答案是 C。", CITIES, None, None, "C"),  # 。 is no mark of theirs
    ("选B", CITIES, None, None, None),
    ("B、天坛", CITIES, "B", "B", "B"),
    (STAGED, COLOURS, "A", None, "B"),
    ("", COLOURS, None, None, None),
    ("nan", COLOURS, None, None, None),
]


@pytest.mark.parametrize(("text", "options", "old", "new", "ours"), CHOICES)
def test_choices(text, options, old, new, ours):
    found = [rule(text, options).value for rule in (choice.by_2024, choice.by_2026)]
    assert [*found, conclusion.choice(text, options).value] == [old, new, ours]


MANY = "It is so. " * 32
# text, vlmevalkit's, conclusion's
YES_NO = [
    ("Yes", "Yes", "Yes"),
    ("no.", "No", "No"),
    ("YES!", "Yes", "Yes"),
    ("Yes, the left one is larger", "Yes", "Yes"),
    ("Yes,no", None, "Yes"),
    ("Yes, there is no doubt", None, "Yes"),
    ("No, yes would be wrong", None, "No"),
    ("There is no cat, so yes", None, None),
    ("**Yes**", None, "Yes"),
    ("yes: it is", None, "Yes"),
    ("'Yes'", None, "Yes"),
    ('"Yes"', "Yes", "Yes"),
    ("Answer: yes", "Yes", "Yes"),
    ("(yes)", "Yes", "Yes"),
    ("There are none", None, None),
    ("nothing", None, None),
    ("I cannot say", None, None),
    ("It is not", None, None),
    ("是", None, None),
    ("yesterday", None, None),
    (MANY + "No.", None, "No"),  # the 33rd full stop stays
    ("In 1,000 cases,yes", None, "Yes"),  # a number with a comma: marks go without a space
    ("<REASONING>No cat.</REASONING><CONCLUSION>Yes</CONCLUSION>", None, "Yes"),
    ("", None, None),
]


@pytest.mark.parametrize(("text", "theirs", "ours"), YES_NO)
def test_yes_or_no(text, theirs, ours):
    assert (yes_no.yes_no(text).value, conclusion.yes_no(text).value) == (theirs, ours)


WHOLE = Asked("free_form", "integer", "14")
TENTH = Asked("free_form", "float", "1.2", 1)
LIST = Asked("free_form", "list", "[2007, 2008]")
SHAPES = Asked("multi_choice", "text", "3/5", None, ("3/11", "8/11", "6/11", "3/5"))
SECOND = replace(SHAPES, answer="8/11")
# extraction, asked, official (today's and the older integer rule), VLMEvalKit's: right or not
EXTRACTED = [
    ("14", WHOLE, True, True, True),
    (" 14 ", WHOLE, True, True, True),
    ("14.0", WHOLE, True, False, False),
    ("14.7", WHOLE, True, False, False),
    ("14 cm", WHOLE, False, False, False),
    ("1e1", WHOLE, False, False, False),
    ("", WHOLE, False, False, False),
    ("inf", WHOLE, False, False, False),
    ("fourteen", WHOLE, False, False, False),
    ("1.2", TENTH, True, True, True),
    ("1.20", TENTH, True, True, True),
    ("1.23", TENTH, True, True, False),
    ("1.25", TENTH, True, True, False),  # a float's halves fall either way: 1.25 rounds to 1.2
    ("1.3", TENTH, False, False, False),
    ("about 1.2", TENTH, False, False, False),
    ("[2007, 2008]", LIST, True, True, False),
    ("[2007,2008]", LIST, False, False, False),
    ("D", SHAPES, True, True, True),
    ("(D) 3/5", SHAPES, True, True, True),
    ("d", SHAPES, True, True, False),  # what is no letter is nearest to the shortest choice
    ("3/5", SHAPES, True, True, True),
    ("3 / 5", SHAPES, True, True, False),
    ("E", SHAPES, True, True, False),
    ("B", SHAPES, False, False, False),
    ("(b) 8/11", SECOND, True, True, True),
    ("(B) or (D)", SHAPES, False, False, False),
    ("", SHAPES, True, True, False),
]


@pytest.mark.parametrize(("text", "asked", "today", "older", "kit"), EXTRACTED)
def test_mathvista(text, asked, today, older, kit):
    found = [
        mathvista.official(text, asked, rule) for rule in (mathvista.whole, mathvista.whole_2023)
    ]
    assert [said.value == asked.answer for said in found] == [today, older]
    assert mathvista.vlmevalkit(text, asked, choice.by_2024, True)[1] is kit


# response, asked, what is extracted without a model: officially; right under VLMEvalKit's, ours
RESPONSES = [
    ("14", WHOLE, "14", True, True),
    ("15", WHOLE, "15", False, False),
    ("0", Asked("free_form", "integer", "0"), "0", True, True),
    ("14.0", WHOLE, None, None, True),
    ("It is 14.", WHOLE, None, None, None),
    ("It is 15.", WHOLE, None, None, False),
    ("1.2", TENTH, "1.2", True, True),
    ("3/5", SHAPES, "3/5", True, True),
    ("The answer is (D) 3/5", SHAPES, None, True, True),
    ("It is between B and D", SHAPES, None, None, None),
]


@pytest.mark.parametrize(("text", "asked", "quick", "kit", "ours"), RESPONSES)
def test_mathvista_without_a_model(text, asked, quick, kit, ours):
    assert mathvista.quick(text, asked).value == quick
    assert mathvista.vlmevalkit(text, asked, choice.by_2024, False)[1] is kit
    if asked.several:
        said = conclusion.choice(text, dict(zip("ABCD", asked.choices, strict=True))).value
        assert (None if said is None else said == asked.letter) is ours
    else:
        assert conclusion.free(text, (asked.answer,))[1] is ours


# prediction, answers, VLMEvalKit's relaxed accuracy, ours
RELAXED = [
    ("100", ["105"], True, True),
    ("105", ["100"], True, True),
    ("99", ["105"], False, False),
    ("0.12", ["12%"], True, True),
    ("12", ["12%"], False, None),  # the sign may have been left out
    ("1", ["0"], False, False),
    ("0", ["0"], True, True),
    ("Blue ", ["blue"], True, True),
    ("blue.", ["blue"], False, True),
    ("No", ["Yes", "no"], True, True),
    ("1,000", ["1000"], False, True),
    ("There are 12", ["12"], False, None),
]


@pytest.mark.parametrize(("text", "answers", "kit", "ours"), RELAXED)
def test_relaxed(text, answers, kit, ours):
    assert relaxed.relaxed(text, answers)[1] is kit
    assert conclusion.free(text, answers, relaxed=True)[1] is ours


def test_distance():
    pairs = [("", "abc", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)]
    for a, b, wanted in pairs:
        assert mathvista.distance(a, b) == mathvista.distance(b, a) == wanted


def test_only_a_model_says_none_of_the_options_by_a_letter():
    """To predictions Z is no answer of ours; a model that is asked is told to reply so."""
    question = Question("line 2", "1", "Which?", COLOURS, ("B",))
    read = RULE_SETS["conclusion"].reads["choice"]
    assert read(question, "Z", False).score is None and read(question, "Z.", True).score == 0.0
