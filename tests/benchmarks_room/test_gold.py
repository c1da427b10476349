"""Published predictions and their published scores: every item and every cell, exact.

The data is not part of this project: without it these tests are skipped.
"""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from cot_engine.benchmarks.catalogue import benchmark
from cot_engine.benchmarks.predictions import read_cases
from cot_engine.benchmarks.questions import read_questions
from cot_engine.benchmarks.rulesets import rule_set
from cot_engine.benchmarks.scoring import score

GOLD = Path(__file__).parents[3] / "shared" / "gold"
FOUND = next((at for at in (GOLD, Path.cwd().parent / "shared" / "gold") if at.is_dir()), None)
pytestmark = pytest.mark.skipif(FOUND is None, reason="there is no ../shared/gold here")

WITHOUT_MODEL = "Failed in Prefetch, no GPT-based answer matching"
"""How a log says that the rules left an item open; the published scores count it as wrong."""


def scored(name, file, rules):
    of = benchmark(name)
    return score(read_cases(FOUND / file, of), of, rule_set(rules, of))


def table(file, mark="\t"):
    with open(FOUND / file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter=mark))


def cells(found, name):
    return next({c.name: c for c in t.cells} for t in found.tables if t.name == name)


@pytest.mark.parametrize("name", ["MMStar", "CCBench"])
def test_choices_under_the_rules_of_2024(name):
    found = scored(name, f"{name}/vila_8b/predictions.tsv", "vlmevalkit-2024")
    items = {row["index"]: row for row in table(f"{name}/vila_8b/official_items.tsv")}
    if name == "MMStar":
        open_ = {key for key, row in items.items() if WITHOUT_MODEL in row["log"]}
        assert {mark.id for mark in found.unresolved} == open_ and len(open_) == 12
        for mark in found.marks:
            assert mark.score == (None if mark.id in open_ else float(items[mark.id]["hit"]))
    else:
        assert found.overall.total == len(items) == 510 and found.overall.unscored == 1
        assert round(found.overall.at_least * 510) == sum(int(r["hit"]) for r in items.values())
    (official,) = table(f"{name}/vila_8b/official_scores.csv", ",")
    assert found.overall.at_least == pytest.approx(float(official.pop("Overall")), abs=1e-15)
    del official["split"]
    ours = cells(found, "category")
    assert set(ours) == set(official)
    for category, value in official.items():
        assert ours[category].at_least == pytest.approx(float(value), abs=1e-15), category


def test_each_circular_group_of_ccbench():
    found = scored("CCBench", "CCBench/vila_8b/predictions.tsv", "vlmevalkit-2024")
    right = Counter()
    for mark in found.marks:
        right[int(mark.id) % 1_000_000] += mark.score == 1.0
    for row in table("CCBench/vila_8b/official_items.tsv"):
        assert (right[int(row["index"])] == 4) == (row["hit"] == "1"), row


@pytest.mark.parametrize("rules", ["vlmevalkit-2024", "vlmevalkit-2026"])
def test_hallusionbench_extractions_and_cells(rules):
    found = scored("HallusionBench", "HallusionBench/vila_8b/predictions.tsv", rules)
    items = {row["index"]: row for row in table("HallusionBench/vila_8b/official_items.tsv")}
    assert len(found.marks) == len(items) == 951
    for mark in found.marks:
        assert (mark.said.value or "Unknown") == items[mark.id]["extracted"], mark.id
        assert (mark.score == 1.0) == (items[mark.id]["score"] == "True"), mark.id
    official = table("HallusionBench/vila_8b/official_scores.csv", ",")
    compared = 0
    for row in official:
        for measure in ("aAcc", "fAcc", "qAcc"):
            ours = 100 * cells(found, measure)[row["split"]].at_least
            assert ours == pytest.approx(float(row[measure]), abs=1e-12), (row, measure)
            compared += 1
    assert compared == 36
    overall = official[0]
    mean = sum(float(overall[m]) for m in ("aAcc", "fAcc", "qAcc")) / 3
    assert 100 * found.overall.at_least == pytest.approx(mean, abs=1e-12)


MATHVISTA = [
    ("bard", "official"),
    ("gpt4_2shot_solution", "official"),
    ("llava_llama_2_13b", "official"),
    ("idefics_9b_instruct", "official-int"),
]


@pytest.mark.parametrize(("model", "rules"), MATHVISTA)
def test_mathvista_cells(model, rules):
    found = scored("MathVista", f"MathVista/output_{model}.json", rules)
    official = json.loads((FOUND / f"MathVista/scores_{model}.json").read_text())
    whole = official.pop("average")
    assert found.overall.total == 1000 and not found.unscored and not found.troubles
    assert round(1000 * found.overall.score) == whole["correct"]
    compared = 0
    for name, values in official.items():
        ours = cells(found, name)
        assert set(ours) == set(values)
        for value, wanted in values.items():
            cell = ours[value]
            right = round(cell.score * cell.total)
            assert (right, cell.total) == (wanted["correct"], wanted["total"]), (name, value)
            assert f"{100 * cell.score:.2f}" == f"{float(wanted['accuracy']):.2f}"
            compared += 1
    assert compared == 74


def test_the_older_integer_rule_is_another():
    older = scored("MathVista", "MathVista/output_idefics_9b_instruct.json", "official-int")
    today = scored("MathVista", "MathVista/output_idefics_9b_instruct.json", "official")
    assert (older.overall.score, today.overall.score) == (0.198, 0.2)


def test_mmvet_grades():
    found = scored("MMVet", "MMVet/instructblip_7b/graded.tsv", "vlmevalkit-2026")
    official = {
        row["Category"]: row for row in table("MMVet/instructblip_7b/official_scores.csv", ",")
    }
    assert 100 * found.overall.score == pytest.approx(float(official["Overall"]["acc"]), abs=1e-10)
    assert found.overall.total == int(official["Overall"]["tot"]) == 218
    ours = cells(found, "capability")
    for name in ("spat", "math", "know", "gen"):  # rec and ocr are of another count there
        assert 100 * ours[name].score == pytest.approx(float(official[name]["acc"]), abs=1e-10)
        assert ours[name].total == int(official[name]["tot"])
    assert any("a model's" in note for note in found.notes)
    mean = (ours["spat"].score + ours["math"].score) / 2
    assert cells(found, "reasoning subset")["MMVet-R"].score == pytest.approx(mean)


@pytest.mark.parametrize(
    ("file", "count", "options"),
    [("MMBench_samples_20.tsv", 20, True), ("MMVet_30.tsv", 30, False)],
)
def test_real_items_are_read_with_their_pictures(file, count, options):
    troubles = []
    questions = read_questions(FOUND / "items" / file, troubles)
    assert len(questions) == count and not troubles
    for question in questions:
        assert len(question.pictures) == 1 and bool(question.options) == options
        assert question.of("category") and question.answers
    first = questions[0].problem()
    assert min(first.images[0].size) > 20 and questions[0].question in first.question
    item = questions[1].item()
    assert item.digest != questions[0].item().digest and item.problem().images
    assert item.grade(questions[1].letter or questions[1].answers[0].split("<")[0]) in (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name"),
    [("MMBench_samples_20.tsv", "MMBench_DEV_EN_V11"), ("MMVet_30.tsv", "MMVet")],
)
def test_real_items_run_end_to_end(engine, tmp_path, file, name):
    """Read, answered by the bundled model, which knows nothing of such pictures, and scored."""
    questions, of = read_questions(FOUND / "items" / file, []), benchmark(name)
    problems = (question.problem() for question in questions)
    with (tmp_path / "p.jsonl").open("w") as lines:
        for answer in engine.solve_many(problems, strategy="greedy"):
            lines.write(json.dumps({"id": answer.problem.id, "prediction": answer.text}) + "\n")
    cases = read_cases(tmp_path / "p.jsonl", of, FOUND / "items" / file)
    found = score(cases, of, rule_set("conclusion", of))
    assert len(found.marks) == len(questions) and not found.unread
    assert all(mark.open or mark.score is not None for mark in found.marks)
    if of.shape == "circular":  # of each question the first turn alone
        assert found.overall.scored == 0 and len(found.troubles) == found.overall.total == 20
        turns = found.tables[-1].cells[1]
        assert turns.total == 20 and turns.scored == 20 - len(found.unresolved)
