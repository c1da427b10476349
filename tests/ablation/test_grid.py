"""Grids read from TOML: axes, baselines, labels, budgets, and what is said of a wrong one."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from cot_engine.ablation.grid import Matching, load_ablation, parse_ablation
from cot_engine.errors import CotEngineError

ROOT = Path(__file__).parents[2]
HOT = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


def grid(text: str, folder: Path = Path()):
    return parse_ablation(tomllib.loads(text), name="test", folder=folder)


def labels(text: str) -> list[str]:
    return [cell.label for cell in grid(text).cells]


def test_every_combination_of_the_lists_is_a_cell():
    made = grid('cells = [{strategy = "stage-beam", n = [1, 2], judge = ["self", "random"]}]')
    searched = [(c.n, c.config.judge) for c in made.cells if c.config.strategy == "stage-beam"]
    assert searched == [(1, "self"), (1, "random"), (2, "self"), (2, "random")]
    assert len({c.label for c in made.cells}) == len(made.cells)


def test_baselines_are_there_once_for_each_way_of_sampling():
    found = labels('cells = [{strategy = "stage-beam", temperature = [0.5, 1.0], n = [2, 3]}]')
    assert [label for label in found if label.startswith("greedy")] == ["greedy"]
    assert len([label for label in found if label.startswith("one sample")]) == 2


def test_a_label_tells_the_judge_only_where_cells_that_judge_differ():
    """The baselines, which have none, are more than the cell: they have no say in what is usual."""
    run = 'run = {judge = "likelihood"}\n'
    cell, other = '{strategy = "stage-beam"}', '{strategy = "stage-beam", judge = "self"}'
    assert labels(f"{run}cells = [{cell}]") == ["greedy", "one sample", "stage-beam n=4"]
    both = labels(f"{run}cells = [{cell}, {other}]")
    assert set(both) > {"stage-beam n=4"} and len(set(both)) == 4


def test_baselines_that_were_added_are_known_as_such():
    made = grid('cells = [{strategy = "stage-beam", n = 2}, {strategy = "greedy"}]')
    assert [cell.label for cell in made.cells if cell.added] == ["one sample"]
    assert [cell.label for cell in made.cells if not cell.added] == ["stage-beam n=2", "greedy"]


def test_baselines_that_the_file_names_are_not_added_again():
    text = 'cells = [{strategy = "greedy"}, {strategy = "best-of-n", n = [1, 4]}]'
    assert labels(text) == ["greedy", "best-of-n n=1", "best-of-n n=4"]


def test_matched_cells_fill_and_a_majority_vote_is_among_them():
    made = grid(
        '[match]\nreference = "stage-beam n=4"\n[[cells]]\nstrategy = "stage-beam"\n'
        '[[cells]]\nstrategy = "best-of-n"\nmatched = true\nn = 2'
    )
    assert [c.label for c in made.cells] == [
        "greedy",
        "one sample",
        "majority (matched)",
        "stage-beam n=4",
        "best-of-n (matched)",
    ]
    reference = made.cell("stage-beam n=4")
    assert reference.match is None and made.reference == reference.label
    for label in ("majority (matched)", "best-of-n (matched)"):
        assert made.cell(label).match == Matching("flops", None, reference.hash)
        assert made.cell(label).parameters["fill"] is True
    assert made.cell("best-of-n (matched)").n == 2


def test_a_fixed_amount_is_the_same_for_all():
    made = grid(
        '[match]\namount = "500 new tokens"\n[[cells]]\nstrategy = "best-of-n"\nmatched = true'
    )
    assert made.cell("best-of-n (matched)").match == Matching("new tokens", 500.0)
    assert made.reference is None


def test_settling_auto_keeps_the_references_together():
    made = grid(
        '[match]\nreference = "stage-beam n=4"\nunit = "new tokens"\n[[cells]]\n'
        'strategy = "stage-beam"\n[[cells]]\nstrategy = "majority"\nmatched = true'
    )
    settled = made.on("likelihood", "cpu", "float32", "bundled")
    reference = settled.cell("stage-beam n=4")
    assert reference.config.judge == "likelihood"
    assert reference.hash != made.cell("stage-beam n=4").hash
    assert settled.cell("majority (matched)").match.reference == reference.hash


def test_a_hash_is_of_what_a_search_does_and_of_nothing_else():
    cell = grid('cells = [{strategy = "stage-beam"}]').cells[-1]
    same = [
        replace(cell, label="other"),
        replace(cell, config=replace(cell.config, seed=7, in_flight=3)),
        replace(cell, config=replace(cell.config, parameters={"n": 4})),  # the default, said
    ]
    other = [
        replace(cell, config=replace(cell.config, **{key: value})) for key, value in HOT.items()
    ]
    other += [
        replace(cell, rollouts=1),
        replace(cell, match=Matching("flops", 1e9)),
        replace(cell, config=replace(cell.config, parameters={"n": 5})),
        replace(cell, config=replace(cell.config, judge="self")),
        replace(cell, config=replace(cell.config, tournament="swiss")),
    ]
    assert {c.hash for c in same} == {cell.hash}
    assert len({c.hash for c in [cell, *other]}) == len(other) + 1


def test_a_plan_is_read_beside_the_file():
    made = load_ablation(ROOT / "examples" / "ablation.toml")
    wide = made.cell("wide caption").config.plan
    assert [stage.width for stage in wide] == [1, 8, None, 1]


def test_the_comparison_is_all_by_one_judge_with_its_reference_among_the_cells():
    made = load_ablation(ROOT / "examples" / "comparison.toml")
    searched = [cell for cell in made.cells if cell.config.strategy == "stage-beam"]
    assert {cell.config.judge for cell in searched} == {"self+likelihood"}
    assert made.reference == "stage-beam n=4" and len(made.seeds) == 3
    assert sum(cell.match is not None for cell in made.cells) == 3


def test_the_grid_of_what_stops_has_the_strategies_that_the_results_name():
    made = load_ablation(ROOT / "examples" / "stopping.toml")
    votes = [c.config.parameters for c in made.cells if c.config.strategy == "weighted-vote"]
    stops = [(v["n"], v.get("stop"), v.get("greedy", False)) for v in votes]
    assert stops == [(5, 0.7, True), (8, 0.6, True), (8, 0.75, True)]
    assert len(made.seeds) == 3
    assert made.cell("stage-beam n=4 verifier=states").config.judge == "self+likelihood"


@pytest.mark.parametrize("name", ["paper"])
def test_presets_are_grids(name):
    import cot_engine

    folder = Path(cot_engine.__file__).parent / "ablation" / "presets"
    made = load_ablation(folder / f"{name}.toml")
    assert {"greedy", "one sample", "best-of-n n=10", "sentence-beam n=2"} <= {
        c.label for c in made.cells
    }
    assert made.reference == "stage-beam n=4"


BAD = {
    "unknown key at the top": ("sedes = [1]\n[[cells]]\nstrategy = 'greedy'", "sedes", "seeds"),
    "unknown key of data": ("[data]\nsorce = 'x'\n[[cells]]\nstrategy='greedy'", "sorce", "source"),
    "unknown key of run": ("[run]\ntemprature = 1\n[[cells]]\nstrategy='greedy'", "tempr", "temp"),
    "unknown parameter": ("[[cells]]\nstrategy = 'stage-beam'\nkeeep = 2", "keeep", "keep"),
    "unknown strategy": ("[[cells]]\nstrategy = 'stage-baem'", "stage-baem", "stage-beam"),
    "unknown judge": ("[[cells]]\nstrategy = 'stage-beam'\njudge = 'slef'", "slef", "self"),
    "unknown tournament": (
        "[[cells]]\nstrategy = 'stage-beam'\ntournament = 'knock'",
        "knock",
        "knockout",
    ),
    "a name that is a path": ("name = '../x'\n[[cells]]\nstrategy = 'greedy'", "../x", "letters"),
    "no cells": ("seeds = [0]", "empty", "[[cells]]"),
    "empty cells": ("cells = []", "empty", "[[cells]]"),
    "empty axis": ("[[cells]]\nstrategy = 'stage-beam'\nn = []", "empty list", "value"),
    "no strategy": ("[[cells]]\nn = 4", "'n': 4", "strategy"),
    "cells are no tables": ("cells = [3]", "3", "strategy"),
    "the same twice": ("[[cells]]\nstrategy = ['stage-beam', 'stage-beam']", "Two cells", "name"),
    "seed in a cell": ("[[cells]]\nstrategy = 'greedy'\nseed = 1", "seed", "seeds"),
    "budget in a cell": ("[[cells]]\nstrategy = 'greedy'\nbudget = '1 calls'", "budget", "[match]"),
    "model in a cell": ("[[cells]]\nstrategy = 'greedy'\nmodel = 'x'", "model", "[run]"),
    "bad seeds": ("seeds = [1, 1]\n[[cells]]\nstrategy = 'greedy'", "seeds", "once"),
    "negative seed": ("seeds = [-1]\n[[cells]]\nstrategy = 'greedy'", "-1", "whole number"),
    "matched with widths": (
        "[match]\namount = '1e9 flops'\n[[cells]]\nstrategy = 'stage-beam'\nwidths = '4,1'\n"
        "matched = true",
        "widths are given",
        "leave one of the two out",
    ),
    "matched to nothing": (
        "[[cells]]\nstrategy = 'majority'\nmatched = true",
        "nothing",
        "[match]",
    ),
    "matched is no bool": ("[[cells]]\nstrategy = 'majority'\nmatched = 1", "matched", "true"),
    "no such reference": (
        "[match]\nreference = 'stage-beam n=5'\n[[cells]]\nstrategy = 'stage-beam'",
        "n=5",
        "n=4",
    ),
    "reference and amount": (
        "[match]\nreference = 'x'\namount = '1 calls'\n[[cells]]\nstrategy = 'greedy'",
        "either",
        "amount",
    ),
    "reference is matched": (
        "[match]\nreference='majority (matched)'\n[[cells]]\nstrategy='majority'\nmatched=true",
        "matched itself",
        "n",
    ),
    "bad unit": (
        "[match]\nunit='joule'\nreference='greedy'\n[[cells]]\nstrategy='greedy'",
        "joule",
        "flops",
    ),
    "bad amount": ("[match]\namount = 'lots'\n[[cells]]\nstrategy = 'greedy'", "lots", "flops"),
    "out of range": ("[[cells]]\nstrategy = 'stage-beam'\nn = 0", "n is 0", "1"),
    "data is no table": ("data = 'scenes'\n[[cells]]\nstrategy = 'greedy'", "data", "[data]"),
    "bad rollouts": ("rollouts = -1\n[[cells]]\nstrategy = 'greedy'", "rollouts", "whole number"),
    "a plan that is not there": ("[[cells]]\nstrategy = 'greedy'\nplan = 'no.toml'", "no.toml", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_grid_is_explained(case, tmp_path):
    text, wrong, hint = BAD[case]
    path = tmp_path / "grid.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(CotEngineError) as caught:
        load_ablation(path)
    assert wrong in caught.value.message
    assert str(path) in caught.value.message
    assert hint in caught.value.hint


def test_a_file_that_is_no_toml_is_explained(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CotEngineError, match="not valid TOML"):
        load_ablation(path)
    with pytest.raises(CotEngineError, match="cannot be read"):
        load_ablation(tmp_path / "missing.toml")


def test_too_many_cells_are_refused():
    with pytest.raises(CotEngineError, match="limit is 500"):
        grid(f"cells = [{{strategy = 'stage-beam', n = {list(range(1, 600))}}}]")
