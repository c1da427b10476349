"""The configuration of a training: every value checked, every mistake named, nothing loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from golden import check_golden

from cot_engine.cli import main
from cot_engine.errors import ConfigError, CotEngineError, UnknownNameError
from cot_engine.training.judge_config import load_judge_config
from cot_engine.training.sft_config import SFTConfig, differences, load_config, parse_config

ROOT = Path(__file__).parents[2]


def table(**changes):
    """A good configuration, with "train__steps" and the like set; None takes a key out."""
    found = {
        "output": "out",
        "model": {"path": "bundled"},
        "data": {"rows": "rows.jsonl"},
        "train": {"steps": 10},
    }
    for key, value in changes.items():
        *names, last = key.split("__")
        inner = found
        for name in names:
            inner = inner.setdefault(name, {})
        inner[last] = value
        if value is None:
            del inner[last]
    return found


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*train-*.toml")), ids=lambda p: p.stem)
def test_the_examples_are_good(path):
    config = load_config(path)
    assert isinstance(config, SFTConfig) and config.folder == path.parent


RECIPES = {  # a digest of each as it was when each stood for itself, and was trained with
    "bundled-train": "19e2eef68b6da11b",
    "bundled-train-2": "62fcb359b9af667e",
    "bundled-train-3": "65ff9f2984bd3368",
    "bundled-judge": "1bb0e92c0459b2ca",
    "bundled-judge-2": "2b82afa1f06dfabf",
    "bundled-judge-3": "616acf3b40b85a3f",
    "bundled-judge-4": "021e615e3064e728",
    "bundled-judge-5": "f8a9ae0e3b52c344",
    "bundled-judge-6": "fcbbbade0ea4ef0a",
}


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_bundled_model_was_made_by_is_what_it_was(name):
    load = load_judge_config if "judge" in name else load_config
    text = json.dumps(load(ROOT / "examples" / f"{name}.toml").plain(), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == RECIPES[name]


def test_a_key_that_is_wrong_is_looked_for_in_all_files_that_make_up_the_table(tmp_path):
    (tmp_path / "low.toml").write_text("[train]\nbacth = 3\n")
    (tmp_path / "top.toml").write_text('extends = "low.toml"\noutput = "o"\nmodel.path = "m"\n')
    with pytest.raises(ConfigError, match=r"'bacth', in '.*top.toml' or '.*low.toml', which it"):
        load_config(tmp_path / "top.toml")


def test_settings_and_flags_override_the_file():
    config = load_config(
        ROOT / "examples" / "train-lora.toml",
        ["train.epochs=2.5", "model.path=some/model", "lora.targets=['q']", "output=there"],
        format="direct",
    )
    assert config.train.epochs == 2.5
    assert config.model.path == "some/model"
    assert config.lora.targets == ("q",)
    assert (config.output, config.format) == ("there", "direct")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trian": {}}, "There is no key called 'trian'. Did you mean train?"),
        ({"train__micro_bacth": 2}, "key of [train] called 'micro_bacth'. Did you mean micro_ba"),
        ({"lora": {"rnak": 4}}, "key of [lora] called 'rnak'. Did you mean rank?"),
        ({"output": None}, "output is missing"),
        ({"output": 3}, "output is 3. It must be a text"),
        ({"format": "tagless"}, "format called 'tagless'"),
        ({"model__path": None}, "[model] has no path"),
        ({"model": "bundled"}, "model is 'bundled'. Write it as a table, [model]"),
        ({"model__dtype": "float16"}, "model.dtype is 'float16'. It must be auto or float32 or"),
        ({"model__freeze": "vision"}, "model.freeze is 'vision'. It must be a list of texts"),
        ({"model__compile": 1}, "model.compile is 1. It must be true or false"),
        ({"data__rows": None}, "[data] needs either rows or scenes"),
        ({"data__scenes": "train"}, "[data] needs either rows or scenes"),
        ({"data__text_only": 0.5}, "[data] has text_only, which belongs to scenes"),
        ({"data": {"scenes": "train", "images": "x"}}, "images, which belongs to rows"),
        ({"data": {"scenes": "test"}}, "data.scenes is 'test'. It must be train"),
        ({"data": {"scenes": "train", "held_out": 0.5}}, "held_out is 0.5. Of scenes, give how"),
        ({"data": {"scenes": "train", "too_long": "drop"}}, "Scenes have no end"),
        ({"data__held_out": 1.5}, "data.held_out is 1.5. It must be a file, a whole number"),
        ({"data__held_out": True}, "data.held_out is True"),
        ({"data__workers": -1}, "data.workers is -1. It must be a whole number, 0 to 64"),
        ({"train__steps": None}, "[train] needs either steps or epochs"),
        ({"train__epochs": 1.0}, "[train] needs either steps or epochs"),
        ({"train__steps": 1.5}, "train.steps is 1.5. It must be a whole number"),
        ({"train__steps": True}, "train.steps is True"),
        ({"train__learning_rate": float("nan")}, "train.learning_rate is nan. It must be a number"),
        ({"train__learning_rate": "1e-5"}, "train.learning_rate is '1e-5'. It must be a number"),
        ({"train__betas": [0.9]}, "train.betas is [0.9]. It must be two numbers"),
        ({"train__schedule": "cosin"}, "It must be linear or cosine or constant or warmup-stable"),
        ({"train__schedule": "cosin"}, "Did you mean cosine"),
        ({"train__batch": 6, "train__micro_batch": 4}, "batch is 6 and micro_batch is 4"),
        ({"quantize": {}}, "[quantize] stands without [lora]"),
        ({"quantize": {"bits": 3}, "lora": {}}, "quantize.bits is 3. It must be 4 or 8"),
        ({"lora": {}, "train__optimizer": "muon"}, 'optimizer is "muon". Use "adamw" with [lora]'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_said(changes, said):
    with pytest.raises(ConfigError if "called" not in said else UnknownNameError) as caught:
        parse_config(table(**changes))
    assert said in str(caught.value)


def test_epochs_of_scenes_have_no_end():
    changes = {"train__steps": None, "train__epochs": 1}
    with pytest.raises(ConfigError, match="Scenes have no end"):
        parse_config(table(data={"scenes": "train"}, **changes))


def test_files_that_are_none(tmp_path, capsys):
    broken = tmp_path / "broken.toml"
    broken.write_text("output = ")
    for path in (tmp_path / "none.toml", tmp_path, broken):
        with pytest.raises(ConfigError, match=r"cannot be read|not valid TOML"):
            load_config(path)
    good = tmp_path / "good.toml"
    good.write_text('output = "x"\n[model]\npath = "\\u001b[31m"\n[data]\n[train]\n')
    with pytest.raises(CotEngineError, match=r"good\.toml"):
        load_config(good)
    for setting in ("steps", "=3", "output.x=3"):
        with pytest.raises(ConfigError, match=r"--set got"):
            load_config(good, [setting])
    assert main(["train", str(broken)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_rate_suits_the_kind_of_training():
    rates = [
        parse_config(table(**changes)).rate
        for changes in ({}, {"lora": {}}, {"train__optimizer": "muon"}, {"train__learning_rate": 1})
    ]
    assert rates == [1e-5, 2e-4, 0.01, 1.0]


def test_differences_name_what_decides_the_result_and_no_more():
    one = parse_config(table()).plain()
    same = parse_config(
        table(
            output="elsewhere",
            train__save_every=3,
            train__keep=9,
            train__log_every=2,
            data__workers=4,
            model__compile=True,
            model__attention="eager",
        )
    ).plain()
    assert differences(one, same) == []
    other = parse_config(table(lora={"rank": 2}, train__batch=8, data__rows="b.jsonl")).plain()
    found = differences(one, other)
    assert "train.batch was 32 and is 8" in found
    assert "data.rows was 'rows.jsonl' and is 'b.jsonl'" in found
    assert "lora.rank was None and is 2" in found


def test_help_is_the_recorded_one(capsys):
    assert main(["train", "--help"]) == 0
    check_golden("help/train.txt", capsys.readouterr().out)


def test_every_key_is_in_the_docs():
    from dataclasses import fields

    from cot_engine.training import sft_config

    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    for name in ("model", "data", "train", "lora", "quantize"):
        kind = getattr(sft_config, f"{name.capitalize()}Table")
        assert f"**[{name}]**" in text
        for f in fields(kind):
            assert f"`{f.name}`" in text, f"{name}.{f.name}"
