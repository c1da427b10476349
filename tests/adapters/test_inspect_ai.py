"""Inspect AI, as it comes from the registry, with the engine as its model: its own command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harnesses import (
    HOT,
    LONG,
    TWO,
    WORDS,
    Outcome,
    check,
    conclusions,
    in_python,
    python,
    run,
)

from cot_engine import Trace
from cot_engine.questions.grading import Grader, verdict

pytestmark = [pytest.mark.slow, pytest.mark.harness]

READ = """
import json, sys
from inspect_ai.log import read_eval_log
log = read_eval_log(sys.argv[1])
rows = [{
    "id": s.id, "epoch": s.epoch, "text": s.output.completion, "error": s.error and s.error.message,
    "columns": s.output.metadata, "usage": s.output.usage and s.output.usage.model_dump(),
    "before": [c.reasoning for c in s.output.message.content if c.type == "reasoning"]
        if s.output.choices and not isinstance(s.output.message.content, str) else [],
} for s in log.samples]
metrics = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
print(json.dumps({"rows": rows, "metrics": metrics, "status": log.status}))
"""
EXPORT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import make_store
from cot_engine.report.inspect_logs import write_logs
from inspect_ai.log import read_eval_log, recompute_metrics
folder, found = Path(sys.argv[2]), []
store, made = make_store.make_store(folder / "store.sqlite", 9, (0, 1, 7), traces=2)
with store:
    paths = write_logs(store, made, folder / "logs")
for path in paths:
    log = read_eval_log(str(path))
    both = []
    for act in (lambda log: None, recompute_metrics):
        act(log)
        both.append({name: each.value for name, each in log.results.scores[0].metrics.items()})
    found.append(both)
print(json.dumps(found))
"""


def evaluated(asked, folder, *more, broken=False, **options) -> Outcome:
    """One run of Inspect on the questions."""
    shutil.copy(Path(__file__).with_name("inspect_task.py"), folder)
    rows = [
        {"id": q.id, "question": q.question, "answer": q.answer, "images": [*map(str, q.images)]}
        for q in asked
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "items.jsonl").write_text(lines, "utf-8")
    logs = folder / ("broken" if broken else "logs")
    given = HOT | {"traces": folder / "traces"} | options
    said = run(
        *python("inspect", "inspect_ai", broken=broken),
        *("eval", "inspect_task.py", "--model", "cot-engine/bundled", "--log-dir", logs),
        *(word for key, value in given.items() for word in ("-M", f"{key}={value}")),
        *("--display", "plain", "--no-fail-on-error", *more),
        folder=folder,
    )
    (log,) = logs.glob("*.eval")
    read = in_python("inspect", READ, log, folder=folder)
    first = {row["id"]: row for row in read["rows"] if row["epoch"] == 1}
    failed = {"stages": {}}
    return Outcome(
        {id: row["text"] for id, row in first.items()},
        {id: row["columns"] or failed | {"error": row["error"]} for id, row in first.items()},
        read["metrics"]["accuracy"],
        {"said": said, **read},
    )


def ours(found, asked) -> float:
    """The share of conclusions that our own rules find right; inspect leaves out what failed."""
    said = conclusions(found)
    marks = [verdict(Grader("exact", (q.answer,)), said[q.id]) for q in asked if said[q.id]]
    return sum(mark or 0 for mark in marks) / len(marks)


@pytest.fixture(scope="module")
def found(asked, tmp_path_factory):
    return evaluated(asked, tmp_path_factory.mktemp("inspect"))


def test_it_scores_conclusions_and_has_the_rest_in_metadata(found, asked):
    check(found, asked, ours(found, asked))
    assert 0 < found.score < 1  # else it would say little
    assert found.more["metrics"]["lower"] < found.score < found.more["metrics"]["upper"]
    by_id = {row["id"]: row for row in found.more["rows"]}
    assert "22,000 characters" in by_id[LONG]["error"] and not found.predictions[LONG]
    row, columns = by_id[TWO], found.columns[TWO]
    assert row["usage"]["output_tokens"] == columns["new_tokens"]
    assert row["usage"]["total_tokens"] == columns["tokens"]
    (before,) = row["before"]
    assert before.startswith("<SUMMARY>") and "<CONCLUSION>" not in before
    # Its pictures stood around the question, so their places are marked in it.
    question = Trace.read(columns["trace"]).started.question
    assert question == "<image 1>\nIs there a red circle?\n<image 2>"


def test_epochs_are_drawn_apart_and_a_bound_of_tokens_is_a_budget(asked, tmp_path):
    few = [each for each in asked if each.id in (WORDS, TWO)]
    more = ("--epochs", "2", "--max-tokens", "60", "--seed", "7")
    found = evaluated(few, tmp_path, *more)
    rows = found.more["rows"]
    assert len(rows) == 4
    for row in rows:
        assert row["columns"]["seed"] == 7 + row["epoch"] - 1
        assert row["columns"]["new_tokens"] <= 60


def test_an_adapter_that_gives_the_whole_chain_is_found(found, asked, tmp_path):
    broken = evaluated(asked, tmp_path, broken=True)
    assert "<CONCLUSION>" in broken.predictions[WORDS]
    assert broken.score != ours(broken, asked) == found.score
    with pytest.raises(AssertionError):
        check(broken, asked, ours(broken, asked))


def test_exported_logs_feed_inspects_own_interval(tmp_path):
    """What the exporter writes has `ci`, and this release recomputes the same from the samples."""
    found = in_python("inspect", EXPORT, Path(__file__).parents[1], tmp_path, folder=tmp_path)
    assert len(found) > 5
    for written, recomputed in found:
        assert written == pytest.approx(recomputed)
        assert written["lower"] <= written["accuracy"] <= written["upper"]
    assert any(written["lower"] < written["accuracy"] for written, _ in found)
