"""Numbers from outside that no float holds, that Python will not print, or that are none."""

from __future__ import annotations

import copy

import pytest
from command_line import two_lines

from cot_engine.ablation.grid import parse_ablation
from cot_engine.backends.server.http import usage_of
from cot_engine.core.stages import Stage
from cot_engine.errors import ConfigError, said, shown
from cot_engine.options.config import RunConfig
from cot_engine.options.layers import load_config, typed
from cot_engine.search.budget import parse_budget, parse_unit
from cot_engine.training.journal import Journal
from cot_engine.training.sft_config import parse_config
from cot_engine.training.teacher import read_reply

HUGE, ENDLESS = 10**400, 10**5000  # beyond a float; beyond what Python prints
ODD = [
    HUGE,
    -HUGE,
    ENDLESS,
    float("nan"),
    float("inf"),
    "9" * 400,
    "9" * 5000,
    [ENDLESS],
    1.5,
    b"x",
]


def kind(value):
    """For the names of tests: pytest would print the value."""
    return value[:12] if isinstance(value, str) else type(value).__name__


def refused(act, *arguments):
    with pytest.raises(ConfigError) as caught:
        act(*arguments)
    assert len(str(caught.value)) < 500, "values echoed in errors are cut"


@pytest.mark.parametrize("value", ODD, ids=kind)
@pytest.mark.parametrize("name", ["top_k", "seed", "in_flight", "budget", "model", "mode", "plan"])
def test_a_setting_is_refused_by_name(name, value):
    if name in ("model", "plan", "budget") and isinstance(value, str):
        return  # a text may be the name of anything; a budget is read when it is used
    refused(lambda: RunConfig(**{name: value}))


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize(
    "value", [HUGE, -HUGE, ENDLESS, float("nan"), float("inf"), "9" * 400], ids=kind
)
def test_so_is_one_that_may_be_a_fraction(name, value):
    refused(lambda: RunConfig(**{name: value}))


@pytest.mark.parametrize(
    "text", ["9" * 400, "9" * 5000, "-" + "9" * 5000, "1e400", "nan", "inf"], ids=kind
)
def test_flags_and_variables_hold_any_digits(text):
    for name in ("top_k", "seed", "in_flight", "temperature"):
        refused(lambda name: load_config(flags={name: typed(name, text)}), name)
        refused(lambda name: load_config(environment={f"COT_ENGINE_{name.upper()}": text}), name)
    for name in ("n", "keep"):
        given = {"parameters": typed("parameters", f"{name}={text}")}
        refused(lambda given: load_config(flags=given), given)


@pytest.mark.parametrize("value", [*ODD, None, {}, "1e400 flops", "9" * 5000 + " s"], ids=kind)
def test_a_budget_that_is_none(value):
    refused(parse_budget, value)
    refused(parse_unit, value)


@pytest.mark.parametrize("value", [*ODD, None, "x" * 10_000], ids=kind)
@pytest.mark.parametrize("field", ["length", "width", "tag"])
def test_a_stage_made_of_anything(field, value):
    if (field, value) == ("width", None):
        return  # the strategy's n
    refused(lambda: Stage(**{"tag": "A", "purpose": "p", "question": "q", field: value}))


GRID = {
    "seeds": [0, 1],
    "rollouts": 1,
    "run": {},
    "match": {"amount": "3e9 flops"},
    "cells": [{"strategy": "stage-beam", "n": [1, 2], "matched": True}],
}


@pytest.mark.parametrize("value", [HUGE, -HUGE, ENDLESS, float("nan"), [HUGE], [ENDLESS]], ids=kind)
@pytest.mark.parametrize(
    "path",
    [
        *(["seeds"], ["seeds", 0], ["rollouts"], ["run", "top_k"], ["run", "temperature"]),
        *(["match", "amount"], ["match", "unit"], ["cells", 0, "n"], ["cells", 0, "keep"]),
        *(["cells", 0, "rollouts"], ["cells", 0, "matched"], ["cells", 0, "name"], ["cells", 0]),
        *(["name"], ["run"], ["match"], ["data"]),
    ],
    ids=str,
)
def test_a_grid_with_numbers_without_end(path, value):
    table = copy.deepcopy(GRID)
    inner = table
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    refused(lambda: parse_ablation(table, name="a"))


@pytest.mark.parametrize(
    "value", [HUGE, -HUGE, ENDLESS, float("nan"), float("inf"), [ENDLESS]], ids=kind
)
@pytest.mark.parametrize("key", ["steps", "seed", "rate", "warmup"])
def test_a_training_with_numbers_without_end(key, value):
    refused(parse_config, {"output": "o", "data": {"train": "x"}, "train": {key: value}})
    refused(parse_config, {"output": "o", "data": {"train": "x", "held_out": value}})


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize("flag", ["-n", "--keep", "--seed", "--top-k", "--in-flight", "--budget"])
def test_the_command_line_says_it_in_two_lines(cli, picture, flag, digits):
    said = two_lines(cli("solve", picture, "How many?", "-q", flag, "9" * digits))
    assert "defect" not in said and len(said) < 500


# --- a teacher's usage ---------------------------------------------------------------------------


USAGES = {
    "64 bits": ("9" * 19, None),
    "400 digits": ("9" * 400, None),
    "5,000 digits": ("9" * 5000, None),
    "negative": ("-5", None),
    "NaN": ("NaN", None),
    "infinite": ("1e999", None),
    "a text": ('"many"', None),
    "null": ("null", None),
    "a list": ("[1]", None),
    "sound": ("7", 7),
}


@pytest.mark.parametrize(("said", "counted"), USAGES.values(), ids=USAGES)
def test_a_paid_reply_is_journaled_whatever_its_usage_says(tmp_path, said, counted):
    usage = '{"prompt_tokens": N, "completion_tokens": N, "prompt_tokens_details":'
    usage = f'{usage} {{"cached_tokens": N}}}}'.replace("N", said)
    message = '{"message": {"content": "It is red."}, "finish_reason": "stop"}'
    body = f'{{"choices": [{message}], "usage": {usage}}}'
    for _ in range(2):  # what was journaled is there when it is opened again
        with Journal(tmp_path / "j.sqlite", {"model": "m"}) as journal:
            reply = journal.get("t", 0, "write", "m")
            reply = reply or journal.add("t", 0, "write", "m", body)
            assert (reply.text, reply.garbage) == ("It is red.", "")
            assert (reply.prompt, reply.completion, reply.cached) == (counted,) * 3
            assert journal.total.calls == 1
            assert journal.total.uncounted == (counted is None)
            assert journal.total.tokens == 2 * (counted or 0)


@pytest.mark.parametrize("said", [10**30, 2**31, -1, True, 7.0, "7", None])
def test_a_server_that_counts_what_cannot_be_has_not_counted(said):
    counts = {"prompt_tokens": said, "completion_tokens": 7}
    assert usage_of({"usage": counts}) == (None, 7, None)


@pytest.mark.parametrize("usage", ["7", "[]", "null", '"free"', '{"prompt_tokens_details": 3}'])
def test_a_usage_that_is_none_costs_no_text(usage):
    body = f'{{"choices": [{{"message": {{"content": "a"}}}}], "usage": {usage}}}'
    assert read_reply(body).text == "a"


# --- how values are shown ------------------------------------------------------------------------


def test_values_are_shown_short_whatever_they_are():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    nested = []
    for _ in range(50_000):
        nested = [nested]
    for value in (*ODD, Broken(), nested, {"a": ENDLESS}, "x" * 10**6, list(range(99))):
        assert 0 < len(shown(value)) <= 80
    assert shown(3) == "3" and shown("a'b") == repr("a'b") and shown([1, "x"]) == "[1, 'x']"
    assert "5,000 digits" in shown(ENDLESS) or "5,001 digits" in shown(ENDLESS)
    assert shown("two  spaces at 0x12") == "'two  spaces at 0x12'"  # a text is what it is
    assert shown(object()) == "<object object>"


@pytest.mark.parametrize("text", ["x" * 10**6, "a\nb  c " * 10**5, ""])
def test_what_an_exception_says_is_one_short_line(text):
    for error in (ValueError(text), ConfigError(text, "Hint."), ExceptionGroup(text, [OSError()])):
        line = said(error)
        assert line.startswith(type(error).__name__) and len(line) < 350
        assert "\n" not in line and "Hint." not in line


def test_an_error_of_ours_that_was_never_made_is_shown_too():
    class Unmade(ConfigError):
        def __init__(self):
            pass

    assert said(Unmade()) == "Unmade: <its text raises AttributeError>"
