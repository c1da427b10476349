"""Plug-ins: found one at a time, explained when broken, given their parameters."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Literal

import pytest

from cot_engine import plugins
from cot_engine.errors import ConfigError, StrategyError, UnknownNameError
from cot_engine.judging.profile import Profile
from cot_engine.plugins import convert

OURS = ["best-of-n", "greedy", "majority", "sentence-beam", "stage-beam"]
GOOD = """
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Mine:
        n: int = 3
        def search(self, task):
            yield
"""


def test_ours_are_there():
    assert set(OURS) <= set(plugins.names("strategy"))
    assert {"self", "rationale", "likelihood", "random"} <= set(plugins.names("judge"))
    assert plugins.names("scorer") == ["likelihood", "states"]


@pytest.mark.parametrize("kind", plugins.GROUPS)
def test_all_that_is_listed_can_be_made(kind):
    profile = Profile(likelihood_weight=1.0)
    for name in plugins.names(kind):
        assert plugins.make(kind, name, profile.parameters(name) if kind == "judge" else {})


def test_a_package_adds_one(install):
    install("nice-pack", GOOD, mine="nice_pack:Mine")
    assert "mine" in plugins.names("strategy")
    assert plugins.make("strategy", "mine", {"n": "5"}).n == 5


def test_listing_imports_nothing(install):
    install("nice-pack", GOOD, mine="nice_pack:Mine")
    plugins.names("strategy")
    assert "nice_pack" not in sys.modules


def test_a_package_may_add_a_judge_or_an_object_or_a_function(install):
    source = """
        class Judge:
            symmetric = True
            async def compare(self, pairs, case, ask): ...
        ready = Judge()
        def maker():
            return Judge()
    """
    points = {name: f"judges_pack:{name}" for name in ("Judge", "ready", "maker")}
    install("judges-pack", source, "judges", **points)
    for name in points:
        assert type(plugins.make("judge", name, {})).__name__ == "Judge"
        with pytest.raises(ConfigError, match=rf"{name} has no parameters; 'n' was given"):
            plugins.make("judge", name, {"n": 1})


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("import nothing_of_the_kind", "bad_pack:Mine", "ModuleNotFoundError"),
        ("1 / 0", "bad_pack:Mine", "ZeroDivisionError"),
        ("raise SystemExit(3)", "bad_pack:Mine", "SystemExit"),
        ("syntax error", "bad_pack:Mine", "SyntaxError"),
        ("", "bad_pack:Mine", "AttributeError"),
        ("", "no such target", "cannot be imported"),
    ],
)
def test_a_broken_one_is_named_and_hides_no_other(install, source, target, said):
    install("bad-pack", source, broken=target)
    install("nice-pack", GOOD, mine="nice_pack:Mine")
    assert {*OURS, "broken", "mine"} <= set(plugins.names("strategy"))
    assert plugins.make("strategy", "mine", {})
    with pytest.raises(StrategyError, match=rf"'broken' of package 'bad-pack'.*{said}"):
        plugins.load("strategy", "broken")


def test_malformed_metadata_hides_no_other(install, tmp_path):
    install("bad-pack", "", mine="bad_pack:Mine")
    (points,) = (tmp_path / "bad-pack").glob("*/entry_points.txt")
    points.write_text("[cot_engine.strategies]\nno equals sign")
    with pytest.raises((ValueError, TypeError)):  # what the standard way would have done
        metadata.entry_points(group="cot_engine.strategies")
    install("nice-pack", GOOD, mine="nice_pack:Mine")
    assert {*OURS, "mine"} <= set(plugins.names("strategy"))


def test_what_lacks_the_method_is_refused(install):
    points = {"mine": "odd_pack:Mine", "number": "odd_pack:number"}
    install("odd-pack", "class Mine: pass\nnumber = 3", **points)
    for name in ("mine", "number"):
        with pytest.raises(StrategyError, match=name):
            plugins.make("strategy", name, {})


def test_one_that_cannot_be_made_is_named(install):
    source = "class Mine:\n  def __init__(self): raise OSError('no disk')\n"
    install("odd-pack", source, mine="odd_pack:Mine")
    with pytest.raises(StrategyError, match=r"'mine' cannot be made: OSError: no disk"):
        plugins.make("strategy", "mine", {})


def test_a_built_in_goes_before_a_stranger_and_that_is_said(install, caplog):
    install("nice-pack", GOOD, greedy="nice_pack:Mine")
    made = plugins.make("strategy", "greedy", {})
    assert type(made).__module__ == "cot_engine_strategies.greedy"
    assert "nice-pack" in caplog.text and "greedy" in caplog.text
    install("judge-pack", "class Mine: pass", "judges", self="judge_pack:Mine")
    assert type(plugins.make("judge", "self", {})).__module__ == "cot_engine.judging.judges"
    assert "judge-pack" in caplog.text


def test_of_two_strangers_the_first_by_name_counts_and_that_is_said(install, caplog):
    install("a-pack", GOOD, mine="a_pack:Mine")
    install("b-pack", GOOD, mine="b_pack:Mine")
    assert type(plugins.make("strategy", "mine", {})).__module__ == "a_pack"
    assert "b-pack" in caplog.text
    assert plugins.names("strategy").count("mine") == 1


def test_nothing_is_said_without_a_reason(caplog):
    for kind in plugins.GROUPS:
        for name in plugins.names(kind):
            plugins.load(kind, name)
    assert caplog.text == ""


def test_an_unknown_name_gets_the_near_misses():
    with pytest.raises(UnknownNameError, match=r"no strategy 'stage-baem'.*stage-beam"):
        plugins.load("strategy", "stage-baem")
    with pytest.raises(UnknownNameError, match=r"no judge 'zzz'.*Known: .*likelihood"):
        plugins.make("judge", "zzz", {})


# --- parameters ----------------------------------------------------------------------------------


def test_parameters_are_the_fields():
    made = plugins.make("strategy", "stage-beam", {"n": "6", "keep": 2})
    assert (made.n, made.keep) == (6, 2)


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("stage-beam", {"kep": 2}, r"called 'kep'\. Did you mean keep"),
        ("stage-beam", {"n": "four"}, r"n is 'four'\. It must be an integer"),
        ("stage-beam", {"n": 2.5}, r"n is 2\.5\. It must be an integer"),
        ("stage-beam", {"n": True}, r"n is True\. It must be an integer"),
        ("stage-beam", {"n": None}, r"n is None\. It must be an integer"),
        ("stage-beam", {"n": "0"}, r"n is 0\. It must be an integer from 1 to 1024"),
        ("greedy", {"n": 4}, r"greedy has no parameters; 'n' was given"),
    ],
)
def test_a_wrong_parameter_is_explained(name, parameters, said):
    with pytest.raises((ConfigError, UnknownNameError), match=said):
        plugins.make("strategy", name, parameters)


def test_a_parameter_without_a_default_is_asked_for(install):
    install("nice-pack", GOOD.replace("int = 3", "int"), mine="nice_pack:Mine")
    with pytest.raises(ConfigError, match="mine needs n"):
        plugins.make("strategy", "mine", {})


@pytest.mark.parametrize(
    ("value", "kind", "made"),
    [
        ("4", int, 4),
        (" -4 ", int, -4),
        (4, int, 4),
        ("4", float, 4.0),
        ("1e-3", float, 0.001),
        (4, float, 4.0),
        ("true", bool, True),
        ("No", bool, False),
        (False, bool, False),
        ("4", str, "4"),
        (" x ", str, " x "),
        ("none", int | None, None),
        (None, int | None, None),
        ("3", int | None, 3),
        ("3", int | str, 3),
        ("x", str | int, "x"),
        ("b", Literal["a", "b"], "b"),
        ("2", Literal[1, 2], 2),
        ("1, 2,3", tuple[int, ...], (1, 2, 3)),
        ("", tuple[int, ...], ()),
        ([1, "2"], list[int], [1, 2]),
        ("1,x", tuple[int, str], (1, "x")),
        ("kept", object, "kept"),
    ],
)
def test_conversion(value, kind, made):
    converted = convert(value, kind)
    assert converted == made and type(converted) is type(made)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("x", int),
        ("4.0", int),
        (4.0, int),
        (True, int),
        (None, int),
        ("", int),
        ("nan", float),
        ("inf", float),
        (True, float),
        ("maybe", bool),
        (1, bool),
        ("", bool),
        (4, str),
        ("c", Literal["a", "b"]),
        ("x", int | None),
        ("1,x", tuple[int, ...]),
        (3, tuple[int, ...]),
        ("1", tuple[int, int]),
        ([["1"]], float),
    ],
)
def test_what_cannot_be_converted_is_refused(value, kind):
    with pytest.raises((ValueError, TypeError)):
        convert(value, kind)
