"""VLMEvalKit, as it comes from the registry, with the engine as its model: its own `run`."""

from __future__ import annotations

import base64
import csv
import json
import math
import shutil
from pathlib import Path

import pytest
from harnesses import HOT, LETTERS, LONG, TWO, Outcome, check, conclusions, python, run

from cot_engine.benchmarks.catalogue import benchmark
from cot_engine.benchmarks.predictions import read_cases
from cot_engine.benchmarks.rulesets import rule_set
from cot_engine.benchmarks.scoring import score

pytestmark = [pytest.mark.slow, pytest.mark.harness]

COLUMNS = ("index", "question", *LETTERS, "answer", "split")
PICTURES, TEXTS = "Pictures", "Texts"
FAILED = "Failed to obtain answer via API."
GOLD = Path(__file__).parents[3] / "shared" / "gold" / "items"


def table(path: Path, asked) -> None:
    """The questions in VLMEvalKit's layout: a row each, its pictures in base64."""
    pictures = any(each.images for each in asked)
    with path.open("w", encoding="utf-8", newline="") as file:
        write = csv.writer(file, delimiter="\t")
        write.writerow([*COLUMNS, "image"] if pictures else COLUMNS)
        for each in asked:
            found = [base64.b64encode(image.read_bytes()).decode() for image in each.images]
            image = [found[0] if len(found) == 1 else str(found)] if found else []
            write.writerow([each.id, each.question, *each.options, each.letter, "dev", *image])


def rows(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(10**9)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def evaluated(folder, tables, *more, broken=False) -> dict[str, Outcome]:
    """One run of VLMEvalKit on the tables of these names, each with its class there."""
    out = folder / ("broken" if broken else "out")
    options = {"class": "CotEngine", **HOT, "traces": str(folder / "traces")}
    data = {name: {"class": kind, "dataset": name} for name, kind in tables.items()}
    config = folder / "runs.json"
    config.write_text(json.dumps({"model": {"engine": options}, "data": data}), "utf-8")
    said = run(
        *python("vlmevalkit", "cot_engine.benchmarks.adapters", broken=broken),
        *("vlmevalkit", "--config", config, "--judge", "exact_matching"),
        *("--api-nproc", "16", "--work-dir", out, *more),
        folder=folder,
        LMUData=folder,
        PRED_FORMAT="tsv",
    )
    status = json.loads((out / "engine" / "status.json").read_text("utf-8"))["datasets"]
    return {name: outcome(out / "engine", name, status[name], said) for name in tables}


def outcome(folder: Path, name: str, status, said: str) -> Outcome:
    made = rows(folder / f"engine_{name}.tsv")
    return Outcome(
        {row["index"]: row["prediction"] for row in made},
        {row["index"]: json.loads(row.get("extra_records") or "{}") for row in made},
        status.get("metrics", {}).get("split=dev|Overall", math.nan),
        {"said": said, "file": folder / f"engine_{name}.tsv"},
    )


def ours(found: Outcome, folder: Path, said: dict[str, str] | None = None) -> float:
    """The share of predictions that VLMEvalKit's rules find right, as we have them; `said` are
    others than those of its file. What the rules leave open is wrong, as it is there."""
    file = found.more["file"]
    if said is not None:
        made = [row | {"prediction": said[row["index"]] or FAILED} for row in rows(file)]
        file = folder / "ours.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")
    choice = benchmark("MMStar")
    scored = score(read_cases(file, choice), choice, rule_set("vlmevalkit-2026", choice))
    return sum(mark.score or 0 for mark in scored.marks) / len(scored.marks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vlmevalkit")


@pytest.fixture(scope="module")
def found(asked, folder):
    table(folder / f"{PICTURES}.tsv", [each for each in asked if each.images])
    table(folder / f"{TEXTS}.tsv", [each for each in asked if not each.images])
    return evaluated(folder, {PICTURES: "CustomMCQDataset", TEXTS: "CustomTextMCQDataset"})


def test_it_scores_conclusions_and_has_the_rest_in_a_column(found, asked, folder):
    pictures = found[PICTURES]
    check(pictures, [q for q in asked if q.images], ours(pictures, folder, conclusions(pictures)))
    assert 0 < pictures.score < 1  # else it would say little
    check(found[TEXTS], [q for q in asked if not q.images], ours(found[TEXTS], folder))
    assert pictures.predictions[LONG] == FAILED
    assert "has no answer: The question has 22," in pictures.more["said"]
    assert "(1/12)" in pictures.more["said"]  # its count of failed questions


def test_it_goes_on_with_what_is_there(found, asked, folder):
    """What failed is asked again, and what an earlier run answered stays an answer: VLMEvalKit
    mixes predictions with texts then, and has no place for columns."""
    before = found[PICTURES].predictions
    again = evaluated(folder, {PICTURES: "CustomMCQDataset"}, "--reuse")[PICTURES]
    assert again.predictions == before
    assert "1/1" in again.more["said"] and again.score == found[PICTURES].score


def test_an_adapter_that_gives_the_whole_chain_is_found(found, asked, folder):
    broken = evaluated(folder, {PICTURES: "CustomMCQDataset"}, broken=True)[PICTURES]
    assert "<CONCLUSION>" in broken.predictions[TWO]
    right = ours(broken, folder, conclusions(broken))
    assert broken.score != right == found[PICTURES].score
    with pytest.raises(AssertionError):
        check(broken, [each for each in asked if each.images], right)


def test_fifty_real_items_run_end_to_end(folder):
    """Photographs and their questions: of the answers the bundled model knows nothing, and it has
    no grader for those of MM-Vet."""
    if not GOLD.exists():
        pytest.skip("shared/gold is not beside the checkout")
    shutil.copy(GOLD / "MMBench_samples_20.tsv", folder / "Gold.tsv")
    shutil.copy(GOLD / "MMVet_30.tsv", folder / "Open.tsv")
    found = evaluated(folder, {"Gold": "CustomMCQDataset", "Open": "CustomVQADataset"})
    gold, free = found["Gold"], found["Open"]
    assert (len(gold.predictions), len(free.predictions)) == (20, 30)
    for each in (gold, free):
        assert all(each.predictions.values()) and each.predictions == conclusions(each)
    assert gold.score == pytest.approx(ours(gold, folder))
