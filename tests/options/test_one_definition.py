"""An option of a search that is declared is all that it can be: nothing else names it."""

import shlex
from dataclasses import fields

import pytest
from cot_engine_strategies.greedy import Greedy

from cot_engine import Engine, Profile
from cot_engine.cli.app import app
from cot_engine.core.events import event_from_json, event_to_json
from cot_engine.core.options import OneOf, SearchOptions, about, shared
from cot_engine.errors import ConfigError, UnknownNameError
from cot_engine.options.config import RunConfig, keys_of
from cot_engine.options.layers import load_config, typed
from cot_engine.options.resolve import resolve
from cot_engine.search.rejudge import REJUDGED
from cot_engine.show import captions
from cot_engine.show import figure as fig
from cot_engine.show.summary import summary
from cot_engine.testing import ScriptedBackend

OTHER = {"tournament": "swiss"}


def other(field):
    """A value that is not the option's default."""
    check = about(field).check
    return OTHER.get(field.name, check.names[-1] if isinstance(check, OneOf) else 3)


VALUES = {field.name: other(field) for field in fields(SearchOptions)}


@pytest.fixture(scope="module")
def trace():
    with Engine(ScriptedBackend()) as engine:
        fixed = {"mode": "trained", "judge": "likelihood"}
        return engine.solve(None, "How many?", **fixed, **VALUES).trace


def test_a_trace_records_them_and_is_read_again(trace):
    assert shared(trace.started) == VALUES
    assert event_from_json(event_to_json(trace.started)) == trace.started


def test_what_is_told_of_a_trace_tells_them(trace):
    assert VALUES.items() <= summary(trace)["run"].items()
    command = shlex.split(captions.command(fig.read(trace)))
    for name, value in VALUES.items():
        assert command[command.index(f"--{name.replace('_', '-')}") + 1] == str(value)


def test_a_recorded_search_is_judged_again_by_those_of_judging(trace):
    with Engine(ScriptedBackend()) as engine:
        again = engine.rejudge(trace, judge="likelihood")
        assert shared(again) == VALUES | REJUDGED
        with pytest.raises(UnknownNameError, match="no option of rejudge called 'seed'"):
            engine.rejudge(trace, seed=4)


@pytest.mark.parametrize("name", VALUES)
def test_a_flag_and_a_variable_give_them(name):
    import typer

    solve = typer.main.get_command(app).commands["solve"]
    flag = f"--{name.replace('_', '-')}"
    assert any(flag in each.opts for each in solve.params)
    text = str(VALUES[name])
    config = load_config(environment={f"COT_ENGINE_{name.upper()}": text})
    assert (
        config == load_config(flags={name: typed(name, text)}) == RunConfig(**{name: VALUES[name]})
    )


def test_what_is_resolved_is_searched_as_it_is():
    call = resolve(Profile(), RunConfig(mode="trained"), {"strategy": Greedy(), "seed": 5})
    with Engine(ScriptedBackend()) as engine:
        started = engine.solve(None, "How many?", config=call).trace.started
        assert (started.strategy, started.seed) == ("Greedy", 5)
        with pytest.raises(ConfigError, match="n was given beside options that are resolved"):
            engine.solve(None, "How many?", config=call, n=2)


def test_every_option_is_of_one_group():
    assert sorted(keys_of()) == sorted(field.name for field in fields(RunConfig))
