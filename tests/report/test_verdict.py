"""What a judge report says first: is this judge any good?"""

import pytest

from cot_engine.core.usage import Usage
from cot_engine.errors import ConfigError
from cot_engine.judging.profile import Profile
from cot_engine.report.controls import Control, OverLikelihood
from cot_engine.report.judge_report import judges_of
from cot_engine.report.judging import JudgeCard
from cot_engine.report.verdict import verdicts
from cot_engine.statistics import Interval, Paired


def spread(value, wide=0.03):
    return Interval(value, value - wide, value + wide)


def card(stage, right=0.7, problems=200, judge="own", **more):
    values = {
        **{"judge": judge, "stage": stage, "measure": "worth", "image": "seen"},
        **{"problems": problems, "pairs": 2 * problems, "matches": 500, "unjudged": 0},
        **{"right": spread(right), "strict": spread(right), "leaning": spread(right)},
        **{"ties": 0.1, "flips": 0.1, "unreadable": 0.0, "first": spread(0.0)},
        **{"longer": None, "longer_right": None, "triples": 0, "cycles": None},
        **{"calibration": (), "calibration_error": None, "cost": Usage(), "relative": 0.5},
        "gain": None,
    }
    return JudgeCard(**values | more)


def paired(value, problems=200, wide=0.03):
    return Paired(problems, 1, spread(value, wide), 0.2, 0.1, 0.5, 0.2, p=0.01, sd=0.3)


def over(stage, value, **more):
    return OverLikelihood("own", stage, "worth", paired(value, **more))


def control(stage, value, image="swap", **more):
    return Control("own", stage, "worth", image, paired(value, **more))


def said(cards, controls=(), overs=(), own="own", judges=("own",)):
    return verdicts(judges, own, cards, controls, overs)


def test_a_judge_that_is_worth_asking():
    cards = [card("CAPTION", 0.8), card("whole"), card("SUMMARY", problems=12), card("REASONING")]
    overs = [over("CAPTION", 0.049), over("whole", 0.092), over("SUMMARY", 0.4, problems=12)]
    overs.append(over("REASONING", 0.01))
    controls = [control("CAPTION", 0.3), control("CAPTION", 0.2, "blank"), control("whole", 0.0)]
    assert said(cards, controls, overs) == (
        "own, the model's own judge, is worth asking: it is better than likelihood, which is free,"
        " at CAPTION (+0.049, +0.019 to +0.079) and whole responses (+0.092, +0.062 to +0.122);"
        " no difference shows at REASONING (+0.010, -0.020 to +0.040)."
        " Too few problems have pairs to tell at SUMMARY (12)."
        " It looks: with another picture it prefers the better one less often"
        " (CAPTION: +0.300, +0.270 to +0.330).",
    )


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        ({"whole": -0.1}, "is not worth asking: it is worse than likelihood, which is free, at"),
        (
            {"whole": 0.01},
            "is not shown to be any good: no difference to likelihood, which is free, shows at",
        ),
        ({"whole": 0.1, "CAPTION": -0.1}, "is good at some stages only: it is better than"),
    ],
)
def test_judges_that_are_not(ahead, words):
    cards = [card(stage) for stage in ahead]
    [text] = said(cards, overs=[over(stage, value) for stage, value in ahead.items()])
    assert text.startswith(f"own, the model's own judge, {words}")


def test_it_does_not_look_it_flips_and_mumbles():
    bad = card("whole", 0.52, flips=0.41, unreadable=0.09)
    [text] = said([bad], [control("whole", 0.0)], [over("whole", 0.01)], own="self")
    assert text.startswith("own is not shown to be any good")
    assert "At whole responses it is not shown to be better than a coin." in text
    assert "It is not shown to look: it does as well with a grey or another picture." in text
    assert "name the same place too often: 41 % at whole responses (coins: 50 %)" in text
    assert "Many of its verdicts cannot be read: 9 % at whole responses." in text


def test_too_little_to_tell():
    few = card("whole", problems=9, matches=39, flips=1.0, unreadable=1.0)
    [text] = said([few], [control("whole", 0.5, problems=9)], [over("whole", 0.5, problems=9)])
    assert "cannot be told from likelihood, which is free: too few problems have pairs." in text
    assert text.endswith("Too few problems have pairs to tell whether it looks.")
    [text] = said([card("whole", problems=0)])
    assert text == "Of own, the model's own judge, nothing can be said: no candidates with" + (
        " different outcomes."
    )


def test_a_judge_that_asks_nobody_is_held_against_a_coin():
    cards = [card("whole", judge="likelihood"), card("whole", 0.51, judge="random")]
    [text] = said(cards, judges=("likelihood", "random"))  # the control has no verdict
    assert text == (
        "likelihood tells better from worse: it is better than a coin at whole responses"
        " (+0.200, +0.170 to +0.230)."
    )
    [text] = said(cards, judges=("random",))
    assert text.startswith("random is not shown to be any good: no difference to a coin shows at")


def test_the_models_own_judge_comes_first_and_the_best_known_measure_counts():
    cards = [card("CAPTION", problems=30, judge="self"), card("CAPTION", problems=30)]
    cards.append(card("CAPTION", 0.9, problems=300, measure="facts"))
    first, second = said(cards, judges=("self", "random", "own"))
    assert first.startswith("own, the model's own judge, tells") and "+0.400" in first
    assert second.startswith("self tells")


def test_who_is_examined_where_nobody_is_named():
    assert judges_of(Profile()) == ("self", "likelihood", "random")
    own = Profile("self+likelihood", likelihood_weight=1.0)
    assert judges_of(own) == ("self+likelihood", "self", "likelihood", "random")
    unfitted = Profile("self+likelihood")  # the command that fits it must go on working
    assert judges_of(unfitted) == ("self", "likelihood", "random")
    with pytest.raises(ConfigError):
        unfitted.make_judge()
