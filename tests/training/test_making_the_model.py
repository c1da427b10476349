"""Steps of making the bundled model: its tower's warm-up, averages, and into the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cot_engine.bundled
from cot_engine import Engine
from cot_engine.errors import InputError
from cot_engine.judging import profile
from cot_engine.judging.profile import Profile
from cot_engine.scenes import sample
from cot_engine.scenes.evaluate import main as evaluate_main
from cot_engine.scenes.world import Thing
from cot_engine.training import bundle, warm_up
from cot_engine.training.average import average
from cot_engine.training.average import main as average_main

BUNDLED = Path(cot_engine.bundled.__file__).parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    warm_up.warm_up(out, steps=4, size=4, minutes=None)
    return out


def test_a_warmed_up_model_is_the_stock_one_with_another_tower(whole):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from cot_engine.scenes.model import build_model

    processor = AutoProcessor.from_pretrained(whole)
    torch.manual_seed(0)
    fresh = build_model(len(processor.tokenizer)).state_dict()
    model = AutoModelForImageTextToText.from_pretrained(whole)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, fresh[k])}
    assert changed and all("vision_tower" in name for name in changed)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    weights = whole / "model.safetensors"
    assert weights.stat().st_mode == (whole / "config.json").stat().st_mode


def test_a_warm_up_stopped_and_resumed_ends_with_the_same_weights(whole, tmp_path, monkeypatch):
    saves = []

    class Clock:
        def monotonic(self):
            saves.append(None)
            return 0.0 if len(saves) < 4 else 1e9  # the time is over after two steps

    with monkeypatch.context() as patch:
        patch.setattr(warm_up, "time", Clock())
        warm_up.warm_up(tmp_path, steps=4, size=4, minutes=1)
    assert torch.load(tmp_path / "warm_up.pt")["done"] == 2
    warm_up.warm_up(tmp_path, steps=4, size=4, minutes=None)
    assert torch.load(tmp_path / "warm_up.pt")["done"] == 4
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_labels_say_what_is_at_every_patch():
    pictures, classes = warm_up.batch(0, 36)
    assert pictures.shape == (36, 3, 64, 64) and pictures.abs().max() <= 1
    for i in range(36):
        objects = sample(1, i).objects
        if isinstance(objects[0], Thing):
            there = {t.row * warm_up.GRID + t.column: t for t in objects}
            for cell in range(warm_up.CELLS):
                shape = classes["shape"][i, cell]
                named = warm_up.SHAPES[shape] if shape < len(warm_up.SHAPES) else None
                assert named == (there[cell].shape if cell in there else None)
            assert (classes["bar1"][i] == warm_up.IGNORE).all()
        else:
            named = {int(c) for c in classes["bar1"][i]} | {int(c) for c in classes["bar2"][i]}
            colours = list(warm_up.COLOURS)
            assert named - {warm_up.NO_BAR} == {colours.index(b.colour) for b in objects}
            assert (classes["shape"][i] == warm_up.IGNORE).all()


def test_bundling_rounds_the_weights_and_keeps_the_rest(tmp_path):
    bundle.bundle(str(BUNDLED), str(tmp_path))
    made, there = (load_file(f / "model.safetensors") for f in (tmp_path, BUNDLED))
    assert all(w.dtype == torch.bfloat16 for w in made.values())
    assert all(torch.equal(made[name], there[name]) for name in there)  # rounded already
    for name in bundle.FILES:
        assert (tmp_path / name).read_bytes() == (BUNDLED / name).read_bytes()
    assert len({p.stat().st_mode for p in tmp_path.iterdir()}) == 1  # whoever reads one reads all


def test_the_average_of_models(whole, tmp_path):
    said = average([BUNDLED, whole], [0.75, 0.25], tmp_path / "mean")
    first, second, made = (
        load_file(f / "model.safetensors") for f in (BUNDLED, whole, tmp_path / "mean")
    )
    for name in first:
        wanted = 0.75 * first[name].float() + 0.25 * second[name].float()
        assert torch.equal(made[name], wanted.to(torch.bfloat16)), name
    for name in set(bundle.FILES) - {profile.FILE}:
        assert (tmp_path / "mean" / name).read_bytes() == (BUNDLED / name).read_bytes()
    # How it is asked to judge is what it was taught; the weight was fitted on one of them.
    assert Profile.of(tmp_path / "mean") == Profile("self", "brief", None)
    assert "fitted on the weights before" in said and "default judge is self" in said
    assert len({p.stat().st_mode for p in (tmp_path / "mean").iterdir()}) == 1
    with Engine.from_pretrained(tmp_path / "mean") as engine:  # a model like any other
        assert engine.backend.info.architecture == "LlavaForConditionalGeneration"


def test_a_model_in_several_files_is_averaged_file_by_file(whole, tmp_path):
    weights = load_file(whole / "model.safetensors")
    half = dict(list(weights.items())[::2])
    (tmp_path / "parts").mkdir()
    rest = {k: v for k, v in weights.items() if k not in half}
    for k, part in enumerate((half, rest)):
        save_file(part, tmp_path / "parts" / f"model-{k}.safetensors")
    average([str(tmp_path / "parts"), whole], [0.5, 0.5], str(tmp_path / "mean"))
    files = sorted((tmp_path / "mean").glob("*.safetensors"))
    assert [file.name for file in files] == ["model-0.safetensors", "model-1.safetensors"]
    made = load_file(files[0]) | load_file(files[1])
    assert all(torch.equal(made[name], weights[name]) for name in weights)


def test_what_cannot_be_averaged_is_refused(whole, tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"sum 0\.9"):
        average([BUNDLED, whole], [0.5, 0.4], tmp_path / "mean")
    with pytest.raises(InputError, match=r"no \.safetensors"):
        average([BUNDLED, tmp_path], [0.5, 0.5], tmp_path / "mean")
    other = tmp_path / "other"
    other.mkdir()
    save_file({"strange": torch.ones(1)}, other / "model.safetensors")
    with pytest.raises(InputError, match="different architectures"):
        average([BUNDLED, other], [0.5, 0.5], tmp_path / "mean")
    wider = {name: torch.ones(2) for name in load_file(BUNDLED / "model.safetensors")}
    save_file(wider, other / "model.safetensors")
    with pytest.raises(InputError, match=r"is \(\d.*\) and \(2,\)"):
        average([BUNDLED, other], [0.5, 0.5], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    command = ["average", str(BUNDLED), "--weights", "1", "--out", str(other)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        average_main()
    assert stopped.value.code == 2 and "is there already" in capsys.readouterr().err


def test_the_evaluation_can_blank_pictures_and_measure_other_splits(monkeypatch, capsys):
    asked = [str(BUNDLED), "--n", "12", "--threads", "1", "--json"]

    def told(*more):
        monkeypatch.setattr(sys, "argv", ["evaluate", *asked, *more])
        capsys.readouterr()
        evaluate_main()
        done = capsys.readouterr()
        return json.loads(done.out), done.err.splitlines()[-1]

    seen, said = told()
    assert said.startswith("scenes-2/test, 12 questions, ")
    blank, said = told("--blank")
    assert said.startswith("scenes-2/test, 12 questions, blank, ")
    assert blank["objects"]["right"] < seen["objects"]["right"] / 2  # a grey picture shows nothing
    ood, said = told("--split", "ood")
    assert said.startswith("scenes-2/ood, 12 questions, ")
    assert ood["objects"]["total"] > seen["objects"]["total"]  # more objects than in training
