"""cot-engine train-judge: a separable task is learnt and measured, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import made_pairs
import pytest
import torch
from golden import check_golden
from made_pairs import pairs_of
from safetensors.torch import load_file
from tiny_models import build

from cot_engine import Engine
from cot_engine.ablation.worth import WHOLE
from cot_engine.cli import main
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import ConfigError, InputError, UnknownNameError
from cot_engine.judging.judges import SelfJudge
from cot_engine.judging.profile import Profile
from cot_engine.training import judge_run
from cot_engine.training.judge_config import load_judge_config
from cot_engine.training.judge_data import load_problems
from cot_engine.training.judge_measure import judge_pairs
from cot_engine.training.judge_run import train_judge
from cot_engine.training.judge_train import HEAD
from cot_engine.training.pairs import Done
from cot_engine.training.trainer import checkpoints

make, world = made_pairs.make, made_pairs.world


@pytest.fixture
def given(monkeypatch):
    """Candidates are made by rule, not sampled: what a random model writes is never right."""

    def sample_pairs(engine, items, wanted, sampler, file, on_done, stop):
        for index in wanted:
            file.add(Done(items[index].id, index, pairs=pairs_of(index, sampler.stages)))
            on_done(file.done[index])

    monkeypatch.setattr(judge_run, "sample_pairs", sample_pairs)


# --- learning ------------------------------------------------------------------------------------


def test_a_separable_task_is_learnt_and_measured(make, given, world):
    config = make(
        train__steps=70, train__batch=16, train__save_every=35, judge__keep=0.125,
        train__schedule="constant", pairs__calibration=0.0,
    )  # fmt: skip
    outcome = train_judge(config)
    report = outcome.report
    log = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert [stage.stage for stage in report.stages] == ["REASONING", WHOLE]
    for stage in report.stages:
        assert stage.after.pairs == stage.before.pairs == 40
        assert stage.after.leaning.low > 0.75 and stage.after.flips < 0.1
        assert stage.before.leaning.estimate < 0.75
        assert stage.over_likelihood.difference.low > 0
        assert stage.gained.difference.low > 0
    assert report.answers_before.estimate == 0.0 and report.answers_cost.problems == 20
    assert Profile.of(config.output / "model") == Profile("self", "brief")
    assert not any(HEAD in name for name in load_file(config.output / "model/model.safetensors"))
    # The engine, given the folder, judges as was measured.
    with Engine.from_pretrained(config.output / "model") as engine:
        judge = engine.profile.make_judge()
        assert judge == SelfJudge(prompt="brief")
        problems = load_problems(config)
        done = [Done(f"q{i}", i, pairs=pairs_of(i)) for i in problems.measuring]
        held = judge_pairs(engine, judge, problems.held_out, done, DEFAULT_PLAN)
    [card, _] = held.cards("self")
    assert card.leaning.estimate == report.stages[0].after.leaning.estimate


def test_stopped_anywhere_it_comes_to_the_same_weights(make, given):
    config = make()
    train_judge(config, measure=False)
    wanted = load_file(config.output / "model/model.safetensors")
    assert [int(p.name) for p in checkpoints(config.output)] == [2, 4]
    shutil.rmtree(config.output / "checkpoints/4")
    shutil.rmtree(config.output / "model")
    outcome = train_judge(config, measure=False)
    assert outcome.training.step == 4
    found = load_file(config.output / "model/model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    head = load_file(config.output / "checkpoints/2/judge_marks.safetensors")
    assert head["weight"].abs().sum() > 0


def test_a_lora_is_trained_and_merged(make, given):
    config = make(lora__rank=4, judge__keep=0.0)
    train_judge(config, measure=False)
    model = load_file(config.output / "model/model.safetensors")
    assert (config.output / "adapter").is_dir() and not any("lora" in name for name in model)
    shutil.rmtree(config.output / "checkpoints/4")
    shutil.rmtree(config.output / "model")
    train_judge(config, measure=False)
    again = load_file(config.output / "model/model.safetensors")
    assert all(torch.equal(again[name], model[name]) for name in model)


def test_time_runs_out_while_sampling_and_the_pairs_stay(make, world, monkeypatch):
    config = make()
    outcome = train_judge(config, minutes=1e-6)
    assert outcome.stopped == "time" and outcome.training is None
    assert train_judge(config, minutes=1e-6).pairs == outcome.pairs


def test_pairs_only_and_what_it_says_of_a_model_that_is_never_right(make, tmp_path):
    config = make(pairs__problems=6, pairs__held_out=2, pairs__in_flight=8)
    with pytest.raises(InputError, match="different outcomes") as caught:
        train_judge(config, pairs_only=True)
    assert "temperature" in caught.value.hint
    kept = [json.loads(line) for line in (config.output / "pairs.jsonl").read_text().splitlines()][
        1:
    ]
    assert sorted(row["index"] for row in kept) == sorted(load_problems(config).training)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pairs__temperatur": 1.0}, "temperatur"),
        ({"judge__consistence": 1.0}, "consistence"),
        ({"judge__prompt": "short"}, "full or brief"),
        ({"judge__marks": -1}, "0 to 1,000"),
        ({"judge__keep": 1.0}, "0 to 0.9"),
        ({"judge__keep": 0.01}, "one at least"),
        ({"judge__corruptions": 0.5}, "Only of scenes"),
        ({"judge__captions_first": 5}, "Only of scenes"),
        ({"pairs__data": "scenes"}, "frozen test set"),
        ({"pairs__n": 1}, "2 to"),
        ({"train__epochs": 2}, "give steps"),
        ({"lora__merge": False}, "measured merged"),
    ],
)
def test_wrong_settings_are_named(make, change, said):
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        make(**change)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_stages_layers_and_files_that_are_not_there(make, given, world):
    with pytest.raises(UnknownNameError, match="REASONNIG"):
        train_judge(make(pairs__stages=["REASONNIG"]))
    with pytest.raises(ConfigError, match="3 layers"):
        train_judge(make(judge__marks_layer=9))
    with pytest.raises(InputError, match=r"nothing\.jsonl"):
        train_judge(make("other", pairs__data="nothing.jsonl"))
    with pytest.raises(ConfigError, match=r"nope\.toml"):
        load_judge_config(world / "nope.toml")


def test_a_held_out_set_that_leaves_nothing(make):
    with pytest.raises(InputError, match="60 questions"):
        load_problems(make(pairs__held_out=60))


def test_problems_are_held_out_once_and_for_all(make):
    few, all_ = load_problems(make(pairs__problems=40)), load_problems(make())
    for found in (few, all_):
        parts = [set(found.training), set(found.measuring), set(found.calibrating)]
        assert not any(a & b for a, b in ((parts[0], parts[1]), (parts[1], parts[2])))
        assert not parts[0] & parts[2]
        assert len(parts[1]) + len(parts[2]) == 20


def test_another_model_or_another_configuration_is_refused(make, given, world, tmp_path):
    config = make()
    train_judge(config, measure=False)
    with pytest.raises(ConfigError, match=r"judge\.marks was 1\.0 and is 2\.0"):
        train_judge(make(judge__marks=2.0), measure=False)
    train_judge(make(judge__marks=2.0), measure=False, restart=True)  # the pairs stay
    other = build("qwen2_5_vl", tmp_path / "qwen")
    with pytest.raises(InputError, match=r"model '.*' \(now '.*'\)"):
        train_judge(make(model__path=str(other)), measure=False)
    assert (config.output / "pairs.jsonl").is_file()


def test_pairs_of_one_model_train_another(make, given, world, tmp_path):
    first = make()
    train_judge(first, pairs_only=True)
    other = build("qwen2_5_vl", tmp_path / "qwen")
    onward = make("onward", model__path=str(other), pairs__model=first.sft.model.path)
    onward.output.mkdir(parents=True)
    for name in ("pairs.jsonl", "held-out.jsonl"):
        shutil.copy(first.output / name, onward.output)
    outcome = train_judge(onward, measure=False)
    assert (outcome.training.model / "config.json").read_text().count("qwen2_5_vl")
    kept = [(run.output / "pairs.jsonl").read_bytes() for run in (first, onward)]
    assert kept[0] == kept[1]


def test_a_folder_of_something_else_is_left_alone(make, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        train_judge(make())


# --- the command ---------------------------------------------------------------------------------


def test_the_command_samples_trains_and_measures_the_bundled_model(tmp_path, capsys):
    """All of it, as a user has it; too little of it to learn anything."""
    file = tmp_path / "judge.toml"
    file.write_text(
        f"""
        output = "{tmp_path / "run"}"
        model = {{path = "bundled", freeze = ["vision"]}}
        pairs = {{problems = 10, held_out = 8, temperature = 1.6, n = 3, in_flight = 16}}
        judge = {{keep = 0.5}}
        train = {{steps = 2, batch = 4, learning_rate = 1e-5}}
        """
    )
    assert main(["train-judge", str(file), "--set", "judge.marks=0.5", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["training"]["step"] == 2 and found["pairs"] > 0
    assert found["report"]["stages"] and found["report"]["answers_before"]
    assert main(["train-judge", str(file), "--set", "judge.marks=0.5"]) == 0
    printed = capsys.readouterr()
    assert "flips" in printed.out and "The model is in" in printed.out
    assert main(["train-judge", str(file), "--set", "judge.marx=1"]) == 2
    assert "marks" in capsys.readouterr().err
    assert Path(found["training"]["model"]).is_dir()


def test_the_help_is_the_recorded_one(capsys):
    assert main(["train-judge", "--help"]) == 0
    shown = capsys.readouterr().out
    check_golden("help/train-judge.txt", shown)
    assert max(map(len, shown.splitlines())) <= 80


def test_the_example_and_the_guide_are_good():
    root = Path(__file__).parents[2]
    config = load_judge_config(root / "examples" / "judge.toml")
    guide = (root / "docs" / "training-judge.md").read_text()
    for table in (config.pairs, config.judge):
        for field in fields(table):
            assert f"`{field.name}`" in guide, field.name
