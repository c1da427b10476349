"""cot-engine train: from a file to a model that the engine loads; stopped, killed, out of space and
on several processes it comes to the same weights."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import textwrap
from functools import partialmethod
from pathlib import Path
from xml.etree import ElementTree

import forked
import pytest
import torch
from near import largest
from safetensors.torch import load_file
from tiny_models import build, picture

from cot_engine import Engine
from cot_engine.cli import main
from cot_engine.errors import ConfigError, InputError, ModelError
from cot_engine.judging.profile import FILE, Profile
from cot_engine.training.sft import train
from cot_engine.training.sft_config import parse_config
from cot_engine.training.trainer import checkpoints

N = 24
STAGED = "<SUMMARY>count</SUMMARY><REASONING>so {0}</REASONING><CONCLUSION>{0}</CONCLUSION>"


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with a model, rows of two lengths with and without pictures, and the pictures."""
    folder = tmp_path_factory.mktemp("training")
    build("llava", folder / "llava")
    (folder / "pictures").mkdir()
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(N):
            picture(i).pixels.save(folder / "pictures" / f"{i}.png")
            words = " a red blue circle" * (i % 3)
            turns = [("human", f"how many{words}?"), ("gpt", STAGED.format(i))]
            row = {"id": str(i), "conversations": [{"from": f, "value": v} for f, v in turns]}
            file.write(json.dumps(row | ({"image": f"{i}.png"} if i % 4 else {})) + "\n")
    return folder


@pytest.fixture
def make(world, tmp_path):
    """make(output="run", **changes) is the configuration as its table; "train.steps" is a key."""

    def made(output="run", **changes):
        table = {
            "output": str(tmp_path / output),
            "model": {"path": str(world / "llava")},
            "data": {"rows": "rows.jsonl", "images": "pictures", "workers": 0},
            "train": {
                "steps": 6,
                "batch": 4,
                "learning_rate": 1e-3,
                "log_every": 1,
                "save_every": 2,
                "keep": 10,
            },
        }
        for key, value in changes.items():
            *names, last = key.split("__")
            inner = table
            for name in names:
                inner = inner.setdefault(name, {})
            inner[last] = value
        return table

    return made


@pytest.fixture
def run(make, world):
    """run(output="run", **changes) trains, and returns the outcome."""

    def ran(output="run", *, options=None, **changes):
        return train(parse_config(make(output, **changes), world), **(options or {}))

    return ran


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def difference(one, other):
    """The largest of any weight."""
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return largest((one[k].float() - other[k].float()).abs().max() for k in one)


def log(folder):
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def toml(table, prefix=""):
    """A table of the tests' kind as TOML."""
    lines = [f"{k} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for name, inner in table.items():
        if isinstance(inner, dict):
            lines += [f"[{name}]", toml(inner)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def script(make, world, tmp_path):
    """script(code, output="run", **changes) runs `code`, then the command line, in a process of
    its own (`of` for several at once, a list of them); `code` may change the trainer."""

    def ran(code="", output="run", of=1, **changes):
        (world / f"{tmp_path.name}.toml").write_text(toml(make(output, **changes)))
        command = ["train", str(world / f"{tmp_path.name}.toml")]
        program = (
            f"import os, signal, resource\n{textwrap.dedent(code)}\n"
            "from cot_engine.cli import main\n"
            f"raise SystemExit(main({command!r}))\n"
        )
        (tmp_path / "program.py").write_text(program)
        if of == 1:
            return forked.run(tmp_path / "program.py", cwd=tmp_path)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            said = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        started = [
            forked.Forked(
                tmp_path / "program.py",
                cwd=tmp_path,
                env={**os.environ, **said, "WORLD_SIZE": f"{of}", "RANK": r, "LOCAL_RANK": r},
            )
            for r in map(str, range(of))
        ]
        return [each.ended() for each in started]

    return ran


# --- training ------------------------------------------------------------------------------------


def test_a_model_learns_and_is_loaded_by_the_engine(run, tmp_path):
    outcome = run(train__steps=30, train__learning_rate=3e-3, data__held_out=4)
    assert outcome.step == outcome.steps == 30 and outcome.stopped == ""
    rows = [row for row in log(outcome.output) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    held = [row for row in log(outcome.output) if "held_out_loss" in row]
    assert [row["step"] for row in held] == list(range(2, 31, 2))
    assert held[-1]["held_out_loss"] < 0.5 * rows[0]["loss"]
    with Engine.from_pretrained(outcome.model) as engine:
        assert engine.solve(picture(1), "how many?", strategy="greedy").text
    drawn = ElementTree.parse(outcome.output / "curves.svg").getroot()
    said = " ".join(drawn.itertext())
    assert all(name in said for name in ("loss", "held-out loss", "learning rate", "steps"))
    card = (outcome.model / "README.md").read_text()
    assert "30 of 4 examples: 120 in all" in card and "20 rows" in card
    assert "4 examples" in card and f"torch {torch.__version__}" in card
    copied = {"tokenizer.json", "processor_config.json", "chat_template.jinja"}
    assert copied <= {p.name for p in outcome.model.iterdir()}
    # A server of another account reads the weights, too.
    assert len({p.stat().st_mode for p in outcome.model.iterdir()}) == 1


def test_the_loss_of_a_step_does_not_depend_on_the_micro_batch(run):
    one = run("one", train__steps=4)
    two = run("two", train__steps=4, train__micro_batch=1)
    for a, b in zip(log(one.output), log(two.output), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    # AdamW divides a gradient by its own size: the rounding of tiny ones is not tiny.
    assert difference(one.model, two.model) < 1e-3


def test_frozen_modules_stay_and_the_rest_moves(run, world):
    before = weights(world / "llava")
    after = weights(run(model__freeze=["vision"], train__steps=2).model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    still = before.keys() - moved
    assert all("vision_tower" in name for name in still)
    assert any("multi_modal_projector" in n for n in moved)
    assert not any("vision_tower" in n for n in moved)
    with pytest.raises(InputError, match=r"'visoin'.*multi_modal_projector, vision_tower"):
        run("other", model__freeze=["visoin"])


@pytest.mark.parametrize(
    "changes",
    [
        {"train__optimizer": "muon"},
        {"train__precision": "bf16", "train__schedule": "warmup-stable-decay"},
        {"train__gradient_checkpointing": True, "train__schedule": "linear"},
        {"model__dtype": "bfloat16", "train__schedule": "constant", "model__attention": "eager"},
        {"format": "no-tags", "data__workers": 2},
        {"format": "direct"},
    ],
    ids=lambda c: " ".join(map(str, c.values())),
)
def test_what_can_be_chosen_trains(run, changes):
    outcome = run(train__steps=8, train__learning_rate=3e-3, **changes)
    losses = [row["loss"] for row in log(outcome.output)]
    assert losses[-1] < losses[0]


def test_gradient_checkpointing_changes_no_number(run):
    plain = run("plain", train__steps=2)
    saving = run("saving", train__steps=2, train__gradient_checkpointing=True)
    assert difference(plain.model, saving.model) < 1e-6


def test_a_compiled_model_trains_alike_and_is_saved_under_its_own_names(run, monkeypatch):
    """Traced as ever; to differentiate that and make C++ of it takes torch 40 s."""
    real, graphs = torch.nn.Module.compile, []

    def traced(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(real, backend=traced))
    plain = run("plain", train__steps=2)
    assert not graphs
    compiled = run("compiled", train__steps=2, model__compile=True)
    assert graphs
    assert difference(plain.model, compiled.model) < 1e-3  # see micro-batches


def test_the_order_is_the_seeds_and_every_row_comes_once_an_epoch(make, world):
    from cot_engine.training.stream import Rows, TrainingItem

    items = [TrainingItem(str(i), "q", "a") for i in range(10)]
    rows = Rows(items, 3)
    epochs = [[rows[e * 10 + i].id for i in range(10)] for e in range(3)]
    assert all(sorted(e) == sorted(i.id for i in items) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [Rows(items, 3)[i].id for i in range(10)] == epochs[0]
    assert [Rows(items, 4)[i].id for i in range(10)] != epochs[0]


def test_scenes_are_a_source_without_end(run, world):
    outcome = run(
        model__path="bundled",
        data={"scenes": "train", "held_out": 4, "text_only": 0.5, "hinted": 0.5, "workers": 0},
        train__steps=2,
        train__batch=4,
    )
    rows = log(outcome.output)
    assert outcome.step == 2 and rows[-1]["held_out_loss"] > 0


# --- stopped and resumed -------------------------------------------------------------------------


def test_stopped_and_resumed_is_as_if_never_stopped(run, make, world):
    """Dropout included: the random state goes on too."""
    lora = {"rank": 4, "dropout": 0.3, "merge": True}
    whole = run("whole", lora=lora)
    once = run("parts", lora=lora, options={"minutes": 1e-9})
    assert (once.step, once.stopped, once.model) == (1, "time", None)
    again = run("parts", lora=lora, options={"minutes": 1e-9, "resume": True})
    assert again.step == 2
    outcome = run("parts", lora=lora)
    assert outcome.step == 6
    assert difference(whole.model, outcome.model) == 0
    untimed = [
        [{k: v for k, v in row.items() if k in ("step", "loss", "grad_norm")} for row in log(f)]
        for f in (whole.output, outcome.output)
    ]
    assert untimed[0] == untimed[1]
    done = run("parts", lora=lora)  # nothing is left to do
    assert done.step == 6 and done.model == outcome.model


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_takes_over_of_its_profile_what_still_holds(run, world, tmp_path, lora):
    """How it is asked to judge is what it was taught; a weight was fitted on the old weights."""
    source = tmp_path / "source"
    shutil.copytree(world / "llava", source)
    Profile("self+likelihood", "brief", 1.25).write(source)
    told = []
    changes = {"lora__rank": 2} if lora else {}
    done = run(model__path=str(source), train__steps=2, options={"tell": told.append}, **changes)
    assert Profile.of(done.model) == Profile("self", "brief", None)
    (note,) = [said for said in told if "likelihood_weight" in said]
    assert "1.25" in note and "not taken over, so the default judge is self" in note
    assert note.removeprefix("Note: ") in (done.model / "README.md").read_text()
    folder = done.output / ("adapter" if lora else "checkpoints/2")
    assert (folder / FILE).exists() != lora, "a checkpoint is a model too, an adapter is none"
    with Engine.from_pretrained(done.model) as engine:
        assert engine.backend.info.architecture == "LlavaForConditionalGeneration"
    # Without a weight there is nothing to say, and all is taken over.
    told.clear()
    Profile("likelihood", "brief").write(source)
    done = run("next", model__path=str(source), train__steps=1, options={"tell": told.append})
    assert Profile.of(done.model) == Profile("likelihood", "brief")
    assert not any("likelihood_weight" in said for said in told)


def test_a_profile_that_cannot_be_read_stops_a_training_before_it_begins(run, world, tmp_path):
    shutil.copytree(world / "llava", tmp_path / "source")
    (tmp_path / "source" / FILE).write_text("{")
    with pytest.raises(ConfigError, match="profile"):
        run(model__path=str(tmp_path / "source"))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_how_far_it_is_is_told_at_each_row_and_between(run, tmp_path):
    for restart, steps in ((False, [1, 2, 3, 4, 5, 6]), (True, [5, 6])):
        rows, ticks = [], []
        options = {"show": rows.append, "step": lambda *tick, ticks=ticks: ticks.append(tick)}
        if restart:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
        run(options=options)
        assert [row["step"] for row in rows] == steps
        firsts = [row["progress"].partition(",")[0] for row in rows]
        assert firsts == [f"{n} of 6 ({100 * n // 6} %)" for n in steps]
        assert all(", about " in row["progress"] for row in rows[:-1])
        assert ticks and ticks[0][0] == steps[0] and ticks[0][1].startswith(firsts[0])
        assert not any("progress" in row for row in log(tmp_path / "run"))


def test_all_weights_and_muons_momentum_are_resumed_exactly(run):
    changes = {"train__optimizer": "muon", "model__freeze": ["vision"]}
    whole = run("whole", **changes)
    run("parts", **changes, options={"minutes": 1e-9})
    outcome = run("parts", **changes)
    assert difference(whole.model, outcome.model) == 0


@pytest.mark.parametrize("when", ["half written", "before it is put in place"])
def test_a_kill_while_saving_leaves_the_checkpoint_before(script, run, tmp_path, when):
    place = "AnswerTrainer._save_scaler" if when == "half written" else "_sync"
    killed = script(f"""
        from cot_engine.training import folders, trainer
        owner, name = folders, {place!r}
        if "." in name:
            owner, name = trainer.AnswerTrainer, name.split(".")[1]
        before, calls = getattr(owner, name), []
        def kill(*args):
            calls.append(args)
            folder = str(args[-1])
            if "checkpoint-4" in folder:
                os.kill(os.getpid(), signal.SIGKILL)
            return before(*args)
        setattr(owner, name, kill)
    """)
    assert killed.returncode == -9, killed.stderr
    output = tmp_path / "run"
    assert [p.name for p in checkpoints(output)] == ["2"]
    assert (output / ".saving" / "checkpoint-4" / "model.safetensors").is_file()
    went_on = script()
    assert went_on.returncode == 0, went_on.stderr
    assert "Going on from step 2 of 6." in went_on.stderr
    assert difference(output / "model", run("whole").model) == 0
    assert not (output / ".saving").exists()
    assert [row["step"] for row in log(output)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("limit", ["model", "optimizer"])
def test_a_full_disk_keeps_the_checkpoint_before(script, run, tmp_path, world, limit):
    """A limit on the size of files stands for the disk; it comes after the first checkpoint."""
    size = (world / "llava" / "model.safetensors").stat().st_size
    size = size // 2 if limit == "model" else size + 1000
    done = script(f"""
        import cot_engine.training.trainer as module
        before = module.AnswerTrainer._save_checkpoint
        def save(self, *args):
            if self.state.global_step > 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
            return before(self, *args)
        module.AnswerTrainer._save_checkpoint = save
    """)
    assert done.returncode == 2, done.stderr
    assert "Step 4: the checkpoint cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["2"]
    assert not (tmp_path / "run" / ".saving").exists()
    assert run("run").step == 6


def test_interrupted_it_stops_with_a_checkpoint(script, run, tmp_path):
    done = script("""
        import cot_engine.training.trainer as module
        before = module.Watch.on_step_end
        def step(self, args, state, control, **more):
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return before(self, args, state, control, **more)
        module.Watch.on_step_end = step
    """)
    assert done.returncode == 130
    assert "3 of 6 steps" in done.stdout and "Go on with: cot-engine train" in done.stdout
    assert "Stopped at step 3 of 6, with a checkpoint" in done.stderr
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["2", "3"]
    assert difference(run("run").model, run("whole").model) == 0


def test_another_configuration_is_refused_with_what_differs(run, tmp_path):
    run(train__steps=2)
    with pytest.raises(ConfigError, match=r"batch was 4 and is 8; train.steps was 2 and is 4"):
        run(train__steps=4, train__batch=8)
    outcome = run(train__steps=4, train__batch=8, options={"restart": True})
    assert outcome.step == 4 and [row["step"] for row in log(outcome.output)] == [1, 2, 3, 4]
    # What does not touch the result may differ.
    assert run(train__steps=4, train__batch=8, train__keep=3, data__workers=1).step == 4


def test_other_weights_under_the_same_name_are_refused(run, world, tmp_path):
    model = shutil.copytree(world / "llava", tmp_path / "model")
    changes = {"model__path": str(model), "lora": {"rank": 2}}
    run(**changes, options={"minutes": 1e-9})
    build("llava", model, seed=5)
    with pytest.raises(ModelError, match="grew from other weights"):
        run(**changes)


def test_old_checkpoints_make_room(run):
    outcome = run(train__keep=1)
    assert [p.name for p in checkpoints(outcome.output)] == ["6"]


# --- adapters ------------------------------------------------------------------------------------


def test_lora_trains_an_adapter_and_merges_it(run, world):
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    outcome = run(lora={"rank": 4}, train__steps=8, train__learning_rate=1e-2)
    losses = [row["loss"] for row in log(outcome.output)]
    assert losses[-1] < losses[0]
    base = LlavaForConditionalGeneration.from_pretrained(world / "llava")
    adapted = PeftModel.from_pretrained(base, outcome.output / "adapter")
    merged = LlavaForConditionalGeneration.from_pretrained(outcome.model)
    ids = torch.tensor([[1, 40, 50, 60]])
    with torch.no_grad():
        one, other = adapted(input_ids=ids).logits, merged(input_ids=ids).logits
        plain = LlavaForConditionalGeneration.from_pretrained(world / "llava")(input_ids=ids).logits
    assert torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(one, plain, atol=1e-2)
    before, after = weights(world / "llava"), weights(outcome.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("language_model" in n and "proj" in n for n in moved)


def test_lora_on_named_layers_without_merging(run):
    outcome = run(lora={"rank": 2, "targets": ["q_proj", "v_proj"], "merge": False})
    names = {name.split(".")[-3] for name in load_file(_adapter(outcome))}
    assert names == {"q_proj", "v_proj"}
    assert outcome.model is None and not (outcome.output / "model").exists()
    assert len({p.stat().st_mode for p in _adapter(outcome).parent.iterdir()}) == 1
    with pytest.raises(InputError, match=r"'q_porj'.*k_proj, o_proj, q_proj"):
        run("other", lora={"targets": ["q_porj"]})


def _adapter(outcome):
    return outcome.output / "adapter" / "adapter_model.safetensors"


@pytest.mark.parametrize("bits", [4, 8])
def test_qlora_trains_on_quantised_weights_and_merges_into_whole_ones(run, world, bits):
    outcome = run(
        lora={"rank": 4},
        quantize={"bits": bits},
        train__steps=8,
        train__learning_rate=1e-2,
    )
    losses = [row["loss"] for row in log(outcome.output)]
    assert losses[-1] < losses[0]
    before, after = weights(world / "llava"), weights(outcome.model)
    assert all(before[n].dtype == after[n].dtype for n in before)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("proj" in name for name in moved)  # the rest was never rounded
    with Engine.from_pretrained(outcome.model) as engine:
        assert engine.solve(picture(1), "how many?", strategy="greedy").text


# --- several processes ---------------------------------------------------------------------------


def test_two_processes_train_as_one(script, run, tmp_path):
    """A step is a batch of four: twice a micro-batch of one in each."""
    # With the environment that `accelerate launch` makes for several GPUs.
    both = script(
        """
        import cot_engine.training.trainer as module
        before = module.AnswerTrainer.train
        def train(self, *args, **more):
            found = before(self, *args, **more)
            from safetensors.torch import save_file
            state = {k: v.contiguous().clone() for k, v in self.model.state_dict().items()}
            save_file(state, os.path.join(os.path.dirname(__file__), f"{self.steps.rank}.st"))
            return found
        module.AnswerTrainer.train = train
        """,
        of=2,
        data__held_out=3,
        train__micro_batch=1,
    )
    for done in both:
        assert done.returncode == 0, done.stderr
    assert sum(done.stdout.count("6 of 6 steps") for done in both) == 1
    first, second = (load_file(tmp_path / f"{rank}.st") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = run("alone", data__held_out=3)
    assert difference(tmp_path / "run" / "model", alone.model) < 1e-3  # see micro-batches
    for a, b in zip(log(alone.output), log(tmp_path / "run"), strict=True):
        key = "loss" if "loss" in a else "held_out_loss"
        assert a[key] == pytest.approx(b[key], rel=1e-4)


def test_a_batch_that_processes_cannot_share_is_refused(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="batch is 4, and there are 3 processes"):
        run()


# --- bad input -----------------------------------------------------------------------------------


def test_missing_pictures_are_told_before_training(run, world, tmp_path):
    with pytest.raises(InputError, match=r"18 rows cannot be used: 1: there is no picture.*\.\.\."):
        run(data__images="nowhere")
    said = []
    outcome = run(
        data__images="nowhere", data__skip_bad=True, train__steps=1, options={"tell": said.append}
    )
    assert outcome.step == 1
    assert any("18 rows cannot be used and are left out" in text for text in said)


def test_bad_rows_and_bad_pictures(run, world, tmp_path):
    rows = (world / "rows.jsonl").read_text().splitlines()
    (world / "bad.jsonl").write_text("\n".join([rows[0], "{", rows[1]]))
    with pytest.raises(InputError, match="1 rows cannot be used: line 2: "):
        run(data__rows="bad.jsonl")
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "1.png").write_bytes(b"no picture")
    (world / "one.jsonl").write_text(rows[1])
    with pytest.raises(InputError, match="1 pictures cannot be read: 1: "):
        run(data__rows="one.jsonl", data__images=str(folder))


def test_long_rows_are_an_explicit_choice(run, world):
    with pytest.raises(InputError, match=r"rows have more than 60 tokens: .*: \d+ tokens"):
        run(data__max_tokens=60)
    said = []
    tell = {"tell": said.append}
    dropped = run("dropped", data__max_tokens=110, data__too_long="drop", options=tell)
    assert dropped.step == 6 and any("left out" in text for text in said)
    said.clear()
    cut = run("cut", data__max_tokens=60, data__too_long="cut", options=tell)
    assert cut.step == 6 and any("are cut to 60 tokens" in text for text in said)
    with pytest.raises(InputError, match="has no row to learn from"):
        run("none", data__max_tokens=16, data__too_long="drop")


def test_a_folder_of_something_else_is_not_written_to(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"holds other files: thesis\.tex"):
        run()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used: "):
        run("file")


def test_nothing_to_resume(run):
    with pytest.raises(InputError, match="has no checkpoint to go on from"):
        run(options={"resume": True})


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoints(script, run, tmp_path):
    done = script("""
        import cot_engine.training.trainer as module
        before = module.AnswerTrainer.training_step
        def step(self, model, *args):
            if self.state.global_step == 4:
                next(model.parameters()).data.fill_(float("nan"))
            return before(self, model, *args)
        module.AnswerTrainer.training_step = step
    """)
    assert done.returncode == 2
    assert "Step 5: the loss is not a number any more" in done.stderr
    said = " ".join(done.stderr.split())
    assert (
        f"--restart, or with another output and model.path = '{tmp_path}/run/checkpoints/4'" in said
    )
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["2", "4"]
    assert difference(run("run").model, run("whole").model) == 0


def test_the_command_line_speaks_json_and_sets_keys(make, world, tmp_path, capsys):
    path = world / "cli.toml"
    path.write_text(toml(make()))
    assert main(["train", str(path), "--set", "train.steps=2", "--json", "-q"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["step"] == 2 and said["model"] == str(tmp_path / "run" / "model")
    assert main(["train", str(path), "--resume", "--restart"]) == 2
    assert main(["train", str(path), "--format", "tagless"]) == 2
    assert "format called 'tagless'" in capsys.readouterr().err
    assert main(["train", str(world / "no.toml")]) == 2
    assert main(["train", str(path), "--minutes", "0"]) == 2


def test_without_the_extra_an_error_names_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"needs peft.*pip install"):
        run()
