"""The strategy "auto": which row a budget gets, what it does there, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
from command_line import two_lines

from cot_engine import ConfigError, Engine, RunConfig, UnknownNameError, plugins
from cot_engine.ablation.grid import parse_ablation
from cot_engine.ablation.runner import ablate, plan_run, run_local
from cot_engine.ablation.store import Store
from cot_engine.core.events import Notice
from cot_engine.engine.code import code_version
from cot_engine.judging.profile import FILE, Profile
from cot_engine.judging.rows import Row
from cot_engine.judging.rows import Unit as InProfile
from cot_engine.options.resolve import resolve
from cot_engine.questions.data import load_data
from cot_engine.search.budget import Unit
from cot_engine.serve.asked import strategy_of
from cot_engine.serve.desk import resolved_within
from cot_engine.testing import ScriptedBackend

ROWS = (
    Row(1.5, "greedy"),
    Row(4, "weighted-vote", {"n": 4, "stop": 0.8}),
    Row(16, "best-of-n", {"n": 12}),
)
TABLE = Profile(sample={"new tokens": 50, "calls": 1}, auto=ROWS)


def chosen(budget=None, profile=TABLE, **options):
    """The strategy that a call gets, and what is said of it."""
    call = resolve(profile, RunConfig(strategy="auto", budget=budget), options)
    (said,) = call.notes
    return call.strategy.name, call.strategy.part, said


@pytest.mark.parametrize(
    ("budget", "name", "words"),
    [
        ("10 new tokens", "greedy", "row for up to 1.5 samples; the budget is worth 0.2"),
        ("75 new tokens", "greedy", "up to 1.5 samples"),  # the limit is the row's own
        ("76 new tokens", "weighted-vote", "n=4 stop=0.8, the profile's row for up to 4 samples"),
        ("4 calls", "weighted-vote", "the budget is worth 4."),
        ("5 calls", "best-of-n", "n=12"),
        ("99 calls", "best-of-n", "the profile's last row; the budget is worth 99 samples"),
        (None, "best-of-n", "last row of the model's profile; there is no budget"),
        ("2 s", "best-of-n", "does not say what a response costs in seconds"),
    ],
)
def test_a_budget_gets_the_row_for_it(budget, name, words):
    got, part, said = chosen(budget)
    assert got == name and said.startswith(f"auto: {name}") and words in said
    if name == "weighted-vote":
        assert (part.n, part.stop, part.round) == (4, 0.8, 2), "the rest is the strategy's own"


def test_the_trace_has_the_strategy_that_was_chosen_and_its_budget_holds():
    with Engine(ScriptedBackend(), profile=TABLE) as engine:
        for solved in (
            engine.solve(None, "How many?", strategy="auto", budget="3 calls", mode="trained"),
            *engine.solve_many(
                [(None, "How many?")], strategy="auto", budget="3 calls", mode="trained"
            ),
        ):
            started = solved.trace.started
            assert (started.strategy, started.parameters["n"]) == ("weighted-vote", 4)
            said = [event.text for event in solved.trace if isinstance(event, Notice)]
            assert len(said) == 1 and "the budget is worth 3." in said[0]
            assert 1 <= solved.total.calls <= 3, "the row's n is 4, and the budget is hard"
        free = engine.solve(None, "How many?", strategy="weighted-vote", n=4, mode="trained")
        assert free.total.calls == 4, "the control: without a budget it takes them all"
        assert not any(isinstance(event, Notice) for event in free.trace), "nothing was chosen"


def test_a_parameter_given_beside_it_goes_before_the_rows():
    _, part, said = chosen("4 calls", n=3)
    assert (part.n, part.stop) == (3, 0.8) and "n=3 stop=0.8" in said
    _, part, _ = chosen("4 calls", parameters={"stop": 0.9})
    assert (part.n, part.stop) == (4, 0.9)
    assert resolve(TABLE, RunConfig(strategy="auto(n=2)", budget="4 calls")).strategy.part.n == 2
    with pytest.raises(UnknownNameError, match=r"weighted-vote, which auto.*'stp'.*mean stop"):
        chosen("4 calls", parameters={"stp": 0.9})
    with pytest.raises(UnknownNameError, match=r"greedy, which auto chose here, called 'n'"):
        chosen("1 call", parameters={"n": 4})
    with pytest.raises(UnknownNameError, match="Did you mean stop"):
        chosen("4 calls", stp=0.9)
    with pytest.raises(ConfigError, match="also given beside it"):
        resolve(TABLE, RunConfig(strategy="auto(n=2)", parameters={"n": 3}))
    with pytest.raises(UnknownNameError, match="Did you mean auto"):
        resolve(TABLE, RunConfig(strategy="atuo"))


@pytest.mark.parametrize(
    ("profile", "budget", "name", "own", "words"),
    [
        (Profile(verifier="states", probe="p"), None, "weighted-vote", {"stop": 0.8}, "states"),
        (Profile(verifier="yes-no"), "9 s", "weighted-vote", {"verifier": "auto"}, "yes-no"),
        (Profile(probe="p"), None, "weighted-vote", {"verifier": "states"}, "a verifier"),
        (Profile(), "7 calls", "weighted-vote", {"n": 7, "verifier": "likelihood"}, "a call each"),
        (Profile(), "900 calls", "weighted-vote", {"n": 32, "stop": None}, "no verifier"),
        (Profile(sample={"flops": 10}), "45 flops", "weighted-vote", {"n": 4}, "profile says"),
        (Profile(), "3000 new tokens", "weighted-vote", {"verifier": "likelihood"}, "may have"),
        (Profile(), "1e9 flops", "stage-beam", {"n": 4}, "in flops is not known"),
        (Profile(), None, "stage-beam", {}, "no budget to go by"),
    ],
)
def test_without_a_table_there_is_a_stated_fallback(profile, budget, name, own, words):
    got, part, said = chosen(budget, profile)
    assert got == name and {key: getattr(part, key) for key in own} == own
    assert "has no table of strategies" in said and words in said


def test_a_probe_that_is_left_out_or_given_counts():
    fitted = Profile(verifier="states", probe="p")
    without = resolve(fitted, RunConfig(strategy="auto", probe="none"))
    assert without.strategy.name == "stage-beam"
    given = resolve(Profile(), RunConfig(strategy="auto", probe="some.safetensors"))
    assert given.strategy.part.verifier == "states"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"auto": [{"upto": 4, "strategy": "greedy"}] * 2}, ["auto[1].upto is 4, after 4"]),
        ({"auto": [{"upto": 0, "strategy": "greedy"}]}, ["auto[0].upto is 0", "above 0"]),
        ({"auto": [{"strategy": "greedy"}]}, ["[auto[0]] has no upto"]),
        ({"auto": [{"upto": 2, "strategy": "greddy"}]}, ["auto[0]", "Did you mean greedy"]),
        ({"auto": [{"upto": 2, "strategy": "auto"}]}, ["auto[0]", "auto itself"]),
        (
            {"auto": [{"upto": 2, "strategy": "weighted-vote", "parameters": {"stp": 1}}]},
            ["auto[0]", "stp", "Did you mean stop"],
        ),
        (
            {"auto": [{"upto": 2, "strategy": "weighted-vote", "parameters": {"stop": 3}}]},
            ["auto[0]", "stop is 3"],
        ),
        ({"auto": [{"upto": 2, "strategy": "greedy", "n": 3}]}, ["key of [auto[0]] called 'n'"]),
        ({"sample": {"flop": 3}}, ["flop", "Did you mean flops"]),
        ({"sample": {"flops": 0}}, ["sample['flops'] is 0", "above 0"]),
        ({"sample": None}, ["sample is missing"]),
        ({"sample": {}}, ["sample is missing"]),
    ],
)
def test_a_table_with_a_mistake_is_explained_when_it_is_read(tmp_path, change, words):
    good = {"sample": {"calls": 1}, "auto": [{"upto": 2, "strategy": "greedy"}]}
    (tmp_path / FILE).write_text(json.dumps(good))
    assert Profile.of(tmp_path).auto == (Row(2, "greedy"),), "the control"
    (tmp_path / FILE).write_text(json.dumps(good | change))
    with pytest.raises(ConfigError) as error:
        Profile.of(tmp_path)
    for word in [*words, FILE]:
        assert word in str(error.value)


def test_what_is_written_is_read_and_lost_with_the_weights(tmp_path):
    TABLE.write(tmp_path)
    assert Profile.of(tmp_path) == TABLE and hash(TABLE) == hash(Profile.of(tmp_path))
    kept, said = TABLE.after_training()
    assert kept == Profile() and "measured on the weights before" in said
    assert set(get_args(InProfile)) == set(get_args(Unit)), "a budget's units, and no others"


# --- where it can be asked for -------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_chosen(cli, tmp_path):
    asked = ("solve", "How many?", "-s", "auto", "--budget", "3 calls", "--dry-run")
    TABLE.write(tmp_path)
    call = resolve(Profile.of(tmp_path), RunConfig(strategy="auto", budget="3 calls"))
    plain = call.plain(0)
    assert (plain["strategy"], plain["parameters"]["stop"]) == ("weighted-vote", 0.8)
    done = cli(*asked, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (said,) = found["notes"]
    assert said.startswith(f"auto: {found['options']['strategy']} ")
    assert said in " ".join(cli(*asked).stdout.split())
    usual = cli(*asked[:2], "--dry-run", "--json")
    assert "notes" not in json.loads(usual.stdout), "the control: nothing was left open"


def test_the_command_line_searches_with_it_and_lists_it(cli, tmp_path):
    TABLE.write(tmp_path)
    asked = ("solve", "How many?", "-s", "auto", "--budget", "3 calls", "-m", tmp_path)
    done = cli(*asked, "--json")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)["run"]
    assert (run["strategy"], run["parameters"]["n"]) == ("weighted-vote", 4)
    assert "the budget is worth 3." in cli(*asked).stderr
    assert "Did you mean stop" in two_lines(cli(*asked, "-p", "stp=1"))
    listed = json.loads(cli("list", "strategies", "--json").stdout)
    assert [row["name"] for row in listed] == plugins.choices("strategy")
    assert listed[0]["name"] == "auto" and "profile" in listed[0]["about"]
    assert "auto" not in plugins.names("strategy"), "it has no search of its own"


def test_a_server_has_it_and_lowers_what_nobody_asked_for():
    assert strategy_of("bundled:auto", "bundled", None) == {"strategy": "auto"}
    with pytest.raises(Exception, match="auto has no n"):
        strategy_of("bundled:auto-4", "bundled", None)
    call = resolved_within(TABLE, RunConfig(), {"strategy": "auto"}, 8)
    assert (call.strategy.name, call.strategy.part.n) == ("best-of-n", 8), "its row says 12"
    assert "n=8" in call.notes[0]
    with pytest.raises(ConfigError, match="n is 12; the most here is 8"):
        resolved_within(TABLE, RunConfig(), {"strategy": "auto", "n": 12}, 8)


def test_a_grid_has_it_as_a_strategy_whose_row_each_problems_budget_chooses(tmp_path):
    made = parse_ablation(
        {
            "data": {"source": "scenes/val", "n": 1},
            "match": {"unit": "calls", "reference": "majority n=3"},
            "cells": [
                {"strategy": "majority", "n": 3},
                {"strategy": "auto", "matched": True},
                {"strategy": "auto", "name": "free"},
            ],
        },
        name="grid",
        baselines=False,
    )
    backend = ScriptedBackend()
    backend.info = replace(backend.info, device="cpu", dtype="float32")
    data = load_data("scenes/val", n=1)
    rows = []
    with Engine(backend, profile=TABLE) as engine, Store(tmp_path / "s", create=True) as store:
        work = plan_run(made, data, engine, "")
        ablate(work, store, partial(run_local, engine, in_flight=2), on_row=rows.append)
        wrong = parse_ablation(
            {"cells": [{"strategy": "auto", "nn": 3}]}, name="grid", baselines=False
        )
        with pytest.raises(UnknownNameError, match=r"best-of-n, which auto.*Did you mean n"):
            plan_run(wrong, data, engine, "")
    calls = {
        work.cells[row.key.cell].label: row.usage["generate"].calls for row in rows if row.usage
    }
    assert calls == {"majority n=3": 3, "auto (matched)": 3, "free": 12}


def test_results_are_filed_by_the_rows():
    config = [RunConfig(strategy="auto")]
    other = replace(TABLE, auto=ROWS[:2])
    dearer = replace(TABLE, sample={"calls": 2})
    assert len({code_version(config, each) for each in (TABLE, other, dearer, Profile())}) == 4
    plain = [RunConfig()]
    assert code_version(plain, TABLE) == code_version(plain, other), "the control"
