"""The table of benchmarks: one command, its rows scored as `score` scores their predictions."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import benchmark_files
import pytest

import cot_engine
from cot_engine.ablation.data import read_data
from cot_engine.ablation.table import parse_table
from cot_engine.benchmarks.tables import averaged, cell, over_seeds
from cot_engine.engine.facade import Engine
from cot_engine.errors import CotEngineError
from cot_engine.judging.profile import Profile
from cot_engine.questions.data import load_data
from cot_engine.testing import ScriptedBackend, staged_reply

_PLACES = (Path(__file__).parents[3], Path.cwd().parent)
GOLD = next((at for p in _PLACES if (at := p / "shared" / "gold" / "items").is_dir()), None)
PRESET = Path(cot_engine.__file__).parent / "ablation" / "presets" / "paper-table.toml"
SAYS = ("A", "B", "Yes", "No", "7", "blue", "")
MATCHED = {"trained: majority (matched)", "trained: one longer answer (matched)"}


def script(request, seed):
    """One of the answers that some question wants, in stages or without, and now and then none."""
    reply = staged_reply(request, seed).replace("About ", "one word more and a word " * 6)
    opened, found, rest = reply.rpartition("<CONCLUSION>")
    return f"{opened}{found}{SAYS[seed % len(SAYS)] or rest[:1]}</CONCLUSION>" if found else reply


def grades(request, seed):
    """What a grader replies, by what it is asked."""
    text = request.prompt.text
    if "Answer to grade" in text:
        return f"0.{len(text) % 10}"
    return "B" if "letter" in text else "Yes" if "yes or no" in text else "7"


@pytest.fixture
def table(cli, monkeypatch, tmp_path):
    """table(*flags): the command on the six files, on two scripted checkpoints."""
    benchmark_files.six(tmp_path)
    loaded = []

    def load(model="bundled", *, in_flight=32, **_):
        loaded.append(model)
        info = replace(ScriptedBackend().info, model=model, digest=f"weights of {model}")
        return Engine(
            ScriptedBackend(script=_of(model), info=info),
            profile=Profile("likelihood"),
            in_flight=in_flight,
        )

    monkeypatch.setattr(Engine, "from_pretrained", load)
    grader = ScriptedBackend(script=grades)
    monkeypatch.setattr("cot_engine.backends.opening.open_backend", lambda *_, **__: grader)
    monkeypatch.chdir(tmp_path)

    def call(*flags, only=()):
        data = [f"--data={name}={tmp_path / file}" for name, file in only] or ["--data", tmp_path]
        return cli("ablate", "paper-table", *data, *flags)

    call.loaded, call.cli = loaded, cli
    return call


def _of(model):
    if model != "plain":
        return script
    return lambda request, seed: SAYS[seed % len(SAYS)] or "I cannot say."


BOTH = ("--checkpoint", "trained=tags", "--checkpoint", "base=plain")


def test_one_command_gives_the_table_that_score_gives(table, cli, tmp_path):
    done = table(*BOTH, "--predictions", "out", "--grader", "judge", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["row"]: row for row in found["rows"]}
    assert set(rows) == MATCHED | {
        "base: one response",
        "trained: one response",
        *(f"trained: stage-beam n={n}" for n in (1, 2, 3, 4)),
        "trained: best-of-n n=10",
        "trained: sentence-beam n=2",
    }
    assert {row["model"] for row in found["rows"]} == {"weights of tags", "weights of plain"}
    files = {name: column["file"] for name, column in found["columns"].items()}
    compared, scores = 0, set()
    some = ("base: one response", "trained: stage-beam n=4", "trained: majority (matched)")
    for row in (rows[name] for name in some):
        folder = "-".join(row["row"].replace(":", "").replace("(", "").replace(")", "").split())
        for name, told in row["benchmarks"].items():
            flags = ["--rules", "vlmevalkit-2024", "--against", files[name], "--json"]
            flags += ["--verdicts", "paper-table.sqlite.verdicts.jsonl"]
            scored = cli("score", name, Path("out", folder, f"{name}.jsonl"), *flags)
            own = json.loads(scored.stdout)
            for key in ("score", "unscored", "tables"):
                assert told[key] == own[key], (row["row"], name, key)
            compared += 1
            scores.add(told["score"]["score"])
    assert compared == 3 * 6 and len(scores) > 5
    # A mean over all six, where there are all six; its interval is narrower than theirs.
    averages = {name for name, row in rows.items() if row["average"]}
    assert averages == {name for name, row in rows.items() if len(row["benchmarks"]) == 6}
    for name in averages:
        cells = [each["score"] for each in rows[name]["benchmarks"].values()]
        average = rows[name]["average"]
        assert average["score"] == pytest.approx(sum(c["score"] for c in cells) / 6)
        assert average["high"] - average["low"] < max(c["high"] - c["low"] for c in cells)
    assert rows["trained: one response"]["published"][0]["value"] == 63.5
    # An answer changed in a file is another score: what is compared above is what was answered.
    path = Path("out", "trained-one-response", "AI2D_TEST.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(each | {"prediction": "A B"}) + "\n" for each in lines))
    scored = cli("score", "AI2D_TEST", path, "--against", files["AI2D_TEST"], "--json")
    assert (
        json.loads(scored.stdout)["score"]
        != rows["trained: one response"]["benchmarks"]["AI2D_TEST"]["score"]
    )
    for row in (rows[name] for name in MATCHED):
        assert 0 < row["cost"]["used"] <= 1
    assert rows["trained: majority (matched)"]["cost"]["used"] > 0.5


def test_it_goes_on_and_says_what_is_left_out(table, tmp_path):
    for name in ("MathVista_MINI", "MMStar", "HallusionBench", "AI2D_TEST"):
        (tmp_path / f"{name}.tsv").unlink()
    first = table("--checkpoint", "trained=tags", "--problems", "2")
    assert first.returncode == 0
    for said in (
        "MathVista_MINI is left out: there is no MathVista_MINI.tsv or MathVista.tsv in",
        "There is no checkpoint base (--checkpoint base=MODEL): without base: one response.",
        "4 of 6 questions of MMBench_V11",  # two groups, whole
    ):
        assert said in first.stdout + first.stderr
    assert "Average of 2" in first.stdout and "[63.5]" not in first.stdout  # not the paper's six
    assert "[60.3]" in first.stdout and "unscored" in first.stdout
    assert "MMVet: 18 predictions that the rules leave open" in first.stdout
    again = table("--checkpoint", "trained=tags", "--problems", "2")
    assert again.stdout == first.stdout
    assert again.stderr.count("searches were there already") == 2
    more = table("--checkpoint", "trained=tags")
    assert more.stderr.count("searches were there already") == 2 and more.returncode == 0


def test_a_dry_run_loads_nothing_and_says_what_it_would_cost(table):
    done = table("--checkpoint", "trained=bundled", "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and not table.loaded
    [each] = told["checkpoints"]
    by_row = {(x["row"], x["benchmark"]): x for x in each["lines"]}
    one, four = by_row["one response", "AI2D_TEST"], by_row["stage-beam n=4", "AI2D_TEST"]
    assert one["searches"] == four["searches"] == 4 and four["tokens"] > 4 * one["tokens"]
    assert by_row["majority (matched)", "AI2D_TEST"]["tokens"] == four["tokens"]
    assert one["flops"] == 2 * each["parameters"] * one["tokens"]


def test_several_seeds_and_the_figures_of_hallusionbench(table, tmp_path):
    text = PRESET.read_text().replace("seeds = [0]", "seeds = [0, 1]")
    (tmp_path / "own.toml").write_text(text)
    only = ["--data", f"HallusionBench={tmp_path}/HallusionBench.tsv", *BOTH]
    done = table.cli("ablate", "own.toml", *only)
    assert done.returncode == 0 and "MMStar is left out" in done.stdout
    at = done.stdout.index("## HallusionBench")
    heads = done.stdout[at:].splitlines()[2]
    assert [each.strip() for each in heads.split("|")[2:6]] == ["aAcc", "fAcc", "qAcc", "mean"]
    found = json.loads(
        table.cli("ablate", "own.toml", *only, "--json", "--predictions", "o").stdout
    )
    told = found["rows"][0]["benchmarks"]["HallusionBench"]
    means = []
    for seed in (0, 1):
        file = Path("o", "base-one-response", f"HallusionBench.seed-{seed}.jsonl")
        flags = ["--against", tmp_path / "HallusionBench.tsv", "--rules", "vlmevalkit-2024"]
        own = json.loads(table.cli("score", "HallusionBench", file, *flags, "--json").stdout)
        means.append(own["score"])
    assert told["cost"]["searches"] == 8
    for key in ("all_wrong", "all_right"):
        assert told["score"][key] == pytest.approx(sum(each[key] for each in means) / 2)


def test_rows_with_faults_are_named_and_the_rest_is_scored(table, tmp_path):
    path = tmp_path / "AI2D_TEST.tsv"
    lines = path.read_text().splitlines()
    cells = lines[2].split("\t")
    lines[2] = "\t".join([*cells[:-1], "A" * 99 + "!"])
    lines[3] = lines[3].replace("\tA\tplants", "\tE\tplants")  # no option: asked all the same
    path.write_text("\n".join([*lines, "9\t\tx\ty\tA\tplants\t0"]) + "\n")
    only = [("AI2D_TEST", "AI2D_TEST.tsv")]
    done = table("--checkpoint", "trained=tags", "--json", only=only)
    [row] = [r for r in json.loads(done.stdout)["rows"] if r["row"] == "trained: one response"]
    told = row["benchmarks"]["AI2D_TEST"]
    assert told["score"]["total"] == 4 and told["unscored"] - told["open"] == 2
    assert told["cost"]["searches"] == 3 and told["missing"] == 0 and "nan" not in done.stderr
    for said in ("line 6, column question: it is empty", "question 1: ", "no readable base64"):
        assert said in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--checkpoint", "trained"), "Write NAME=MODEL"),
        (("--checkpoint", "traned=x"), "Did you mean trained?"),
        (("--checkpoint", "base=x", "--checkpoint", "base=y"), "two models"),
        (("--data", "MMStarr=x"), "Did you mean MMStar"),
        (("--data", "MMStar=nothing.tsv"), "there is no file"),
        (("--data", "nowhere"), "is no folder"),
        (("--model", "x"), "--checkpoint NAME=MODEL"),
        (("--checkpoint", "base=x", "--rules", "vlmevalkit"), "Did you mean vlmevalkit-20"),
        (("--checkpoint", "base=plain", "--verdicts", "none.jsonl"), "no file of verdicts"),
        (("--checkpoint", "base=plain", "--predictions", "MMVet.tsv"), "cannot be written"),
        ((), "Nothing of the table paper-table can be run"),
    ],
)
def test_what_will_not_do_is_said_before_a_model_loads(table, flags, said):
    done = table(*flags)
    assert done.returncode == 2 and said in " ".join(done.stderr.split())
    assert not table.loaded


def test_a_grid_refuses_what_is_a_tables(cli):
    done = cli("ablate", "paper", "--checkpoint", "base=x")
    assert done.returncode == 2 and "--checkpoint is set, and paper is a grid" in done.stderr


def preset(**changes):
    table = tomllib.loads(PRESET.read_text())
    return parse_table(table | changes, name="paper-table")


def test_the_preset_has_the_papers_rows():
    found = preset()
    rows = {name: each.rows for name, each in found.checkpoints.items()}
    assert [rows[name] for name in ("base", "direct", "no-tags")] == [
        [f"{name}: one response"] for name in ("base", "direct", "no-tags")
    ]
    assert len(rows["trained"]) == 9 and set(rows["trained"]) > MATCHED
    subsets = {c.benchmark.subset.name for c in found.columns.values() if c.benchmark.subset}
    assert subsets == {"MMStar-R", "MMBench-R", "MMVet-R"} and len(found.columns) == 6
    grids = found.checkpoints["trained"].grids
    alone = {cell.label for cell in grids["MMVet"].cells} - {c.label for c in grids["MMStar"].cells}
    assert alone == {
        *(f"stage-beam n={n}" for n in (1, 3)),
        "best-of-n n=10",
        "sentence-beam n=2",
    }
    longer = grids["MMStar"].cell("one longer answer (matched)")
    assert longer.match.reference == grids["MMStar"].cell("stage-beam n=4").hash
    assert longer.match.unit == "tokens" and not longer.parameters["fill"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rules": "official-2020"}, "official"),
        ({"rules": {"MMStar": "official"}}, "say nothing about MMStar"),
        ({"benchmarks": {"MMStarr": "x.tsv"}}, "MMStar"),
        ({"checkpoints": {"alone": ""}}, "no checkpoint|checkpoint of this table called"),
        (
            {"published": [{"row": "x", "column": "MMVet", "value": 1, "source": "s"}]},
            "row in publ",
        ),
        ({"cells": [{"checkpoint": "base", "strategy": "greedy", "plain": 1}]}, "true or false"),
        ({"cells": []}, "no cells"),
    ],
)
def test_a_table_that_is_none_is_explained(changes, said):
    with pytest.raises(CotEngineError, match=said):
        preset(**changes)


def test_a_matched_row_needs_its_reference(tmp_path):
    cells = [{"checkpoint": "base", "strategy": "majority", "n": 2, "matched": True}]
    with pytest.raises(CotEngineError, match="matched"):
        preset(checkpoints={"base": ""}, cells=cells, published=[])


def test_means_over_benchmarks():
    first, second = cell("a", [1.0, 0.0, 1.0, 1.0] * 25), cell("b", [0.0, 0.0, 1.0, 0.0] * 100)
    both = averaged("Average", [first, second])
    assert both.score == pytest.approx(0.5) and both.total == 500
    half = (
        (first.score - first.interval.low) ** 2 + (second.score - second.interval.low) ** 2
    ) ** 0.5
    assert both.score - both.interval.low == pytest.approx(half / 2)
    assert averaged("Average", [first, first]).interval.high < first.interval.high
    seeds = over_seeds([first, cell("a", [0.0, 0.0, 1.0, 1.0] * 25)])
    assert seeds.score == pytest.approx(0.625) and seeds.total == 100
    assert (
        seeds.interval.high - seeds.interval.low > first.interval.high - first.interval.low - 0.02
    )


# --- data ----------------------------------------------------------------------------------------


def test_a_benchmarks_file_gives_a_grid_the_same_items_row_by_row(tmp_path, monkeypatch):
    benchmark_files.six(tmp_path)
    whole = {p: load_data(p) for p in sorted(tmp_path.glob("*.tsv"))}
    monkeypatch.setattr("cot_engine.ablation.data.load_data", None)  # it would hold the file
    for path, data in whole.items():
        own = read_data(str(path))
        assert own.items == data.items and own.digest == data.digest, path.name
        assert (own.rule, own.notes, own.name) == (data.rule, data.notes, data.name)
        assert own.items[0].problem() == data.items[0].problem()
    part = read_data("MMStar.tsv", folder=tmp_path, n=3)
    assert part.items == whole[tmp_path / "MMStar.tsv"].items[:3] and len(part.notes) == 1


def test_what_is_wrong_in_a_grids_file_is_said_as_before(tmp_path):
    benchmark_files.six(tmp_path)
    path = tmp_path / "AI2D_TEST.tsv"
    path.write_text(path.read_text().replace("\tB\tplants", "\tE\tplants"))
    with pytest.raises(CotEngineError, match="line 3") as row_by_row:
        read_data(str(path))
    with pytest.raises(CotEngineError) as whole:
        load_data(path)
    assert str(row_by_row.value) == str(whole.value)


# --- the real items ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(GOLD is None, reason="there is no ../shared/gold here")
def test_the_gold_items_end_to_end_on_two_checkpoints(cli_real, tmp_path):
    """All 50 by the quick row of one checkpoint, then some by all rows of both, in one store."""
    data = [f"--data=MMVet={GOLD}/MMVet_30.tsv", "--grader", "bundled"]
    data += [f"--data=MMBench_V11={GOLD}/MMBench_samples_20.tsv", "--json"]
    trained, base = (f"--checkpoint={each}" for each in cli_real.both)
    done = cli_real("ablate", "paper-table", *data, base, "--predictions", "out")
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)["rows"]
    for name, count in (("MMVet", 30), ("MMBench_V11", 20)):
        told = row["benchmarks"][name]
        assert told["cost"]["searches"] == count and told["failed"] == told["missing"] == 0
    # Of MMBench's sample no group is whole, so that no group is scored; single turns are.
    tables = {table["name"]: table for table in row["benchmarks"]["MMBench_V11"]["tables"]}
    assert tables["each turn alone"]["cells"][0]["total"] == 20
    assert row["benchmarks"]["MMBench_V11"]["score"]["score"] is None
    flags = ["--against", GOLD / "MMVet_30.tsv", "--json", "--rules", "vlmevalkit-2024"]
    flags += ["--verdicts", "paper-table.sqlite.verdicts.jsonl"]
    file = Path("out", "base-one-response", "MMVet.jsonl")
    own = json.loads(cli_real("score", "MMVet", file, *flags).stdout)
    assert own["score"] == row["benchmarks"]["MMVet"]["score"]
    assert own["unscored"] == row["benchmarks"]["MMVet"]["unscored"]
    both = cli_real("ablate", "paper-table", *data, base, trained, "--problems", 2)
    assert both.returncode == 0, both.stderr
    assert both.stderr.count("2 searches were there already") == 2
    rows = json.loads(both.stdout)["rows"]
    assert len(rows) == 10 and len({row["model"] for row in rows}) == 2
    for told in (told for row in rows for told in row["benchmarks"].values()):
        assert told["failed"] == told["missing"] == 0 and told["cost"]["searches"] == 2


@pytest.fixture
def cli_real(capfd, monkeypatch, tmp_path):
    """Run in this process, on real models: the bundled one, and a copy whose weights differ."""
    from types import SimpleNamespace

    from cot_engine.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cot_engine.cli.process.silence_libraries", lambda: None)

    def call(*arguments):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    call.both = ("trained=bundled", f"base={_nudged(tmp_path / 'other')}")
    return call


def _nudged(folder):
    """The bundled model with one weight a little larger: another model, by its digest."""
    import shutil

    from safetensors import safe_open
    from safetensors.torch import save_file

    from cot_engine.engine.facade import model_path

    shutil.copytree(model_path("bundled"), folder)
    [file] = sorted(folder.glob("*.safetensors"))
    with safe_open(file, "pt") as held:
        tensors, metadata = {k: held.get_tensor(k).clone() for k in held.keys()}, held.metadata()  # noqa: SIM118
    first = next(iter(tensors.values()))
    first.view(-1)[0] += 1e-3
    save_file(tensors, file, metadata)
    return folder
