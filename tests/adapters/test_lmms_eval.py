"""lmms-eval, as it comes from the registry, with the engine as its model: its own command line."""

from __future__ import annotations

import json

import pytest
from harnesses import HOT, LONG, WORDS, Outcome, check, conclusions, in_python, python, run

from cot_engine import Trace
from cot_engine.questions.grading import Grader, verdict

pytestmark = [pytest.mark.slow, pytest.mark.harness]

FAILED = "[LMMS_EVAL_REQUEST_FAILED]"
TASK = """\
task: scenes
dataset_path: json
dataset_kwargs:
  data_files: {test: %s}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 16, temperature: 0, until: ["\\n"]}
process_results: !function utils.results
metric_list:
  - {metric: right, aggregation: mean, higher_is_better: true}
"""
UTILS = """\
from PIL import Image

def visual(doc):
    return [Image.open(path).convert("RGB") for path in doc["images"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def results(doc, results):
    return {"right": float(results[0].strip().lower() == doc["answer"].lower())}
"""


def evaluated(asked, folder, *more, broken=False) -> Outcome:
    """One run of lmms-eval on the questions."""
    (folder / "tasks").mkdir(exist_ok=True)
    data = folder / "items.jsonl"
    rows = [
        {"id": q.id, "question": q.question, "answer": q.answer, "images": [*map(str, q.images)]}
        for q in asked
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "tasks" / "scenes.yaml").write_text(TASK % data, "utf-8")
    (folder / "tasks" / "utils.py").write_text(UTILS, "utf-8")
    arguments = ",".join(f"{key}={value}" for key, value in HOT.items())
    out = folder / ("broken" if broken else "out")
    said = run(
        *python("lmms-eval", "lmms_eval", broken=broken),
        *("--model", "cot-engine", "--model_args", f"{arguments},traces={folder / 'traces'}"),
        *("--tasks", "scenes", "--include_path", folder / "tasks", "--output_path", out),
        *("--log_samples", *more),
        folder=folder,
    )
    (log,) = out.glob("*_samples_scenes.jsonl")
    (results,) = out.glob("*_results.json")
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    samples = {asked[each["doc_id"]].id: each for each in lines}
    return Outcome(
        {id: each["filtered_resps"] for id, each in samples.items()},
        {id: each["token_counts"][0]["cot_engine"] for id, each in samples.items()},
        json.loads(results.read_text("utf-8"))["results"]["scenes"]["right,none"],
        {"said": said, "samples": samples},
    )


def ours(found, asked) -> float:
    """The share of conclusions that our own rules find right."""
    said = conclusions(found)
    marks = [verdict(Grader("exact", (q.answer,)), said[q.id]) if said[q.id] else 0 for q in asked]
    return sum(mark or 0 for mark in marks) / len(asked)


@pytest.fixture(scope="module")
def found(asked, tmp_path_factory):
    return evaluated(asked, tmp_path_factory.mktemp("lmms"))


def test_it_scores_conclusions_and_has_the_rest_in_its_samples_log(found, asked):
    check(found, asked, ours(found, asked))
    assert 0 < found.score < 1  # else it would say little
    assert found.predictions[LONG] == FAILED
    assert "has no answer: The question has 22,000 characters" in found.more["said"]
    tokens, columns = found.more["samples"][WORDS]["token_counts"][0], found.columns[WORDS]
    assert tokens["output_tokens"] == columns["new_tokens"]  # 16 are the task's, for one reply
    assert tokens["input_tokens"] + tokens["output_tokens"] == columns["tokens"]


def test_an_adapter_that_gives_the_whole_chain_is_found(found, asked, tmp_path):
    broken = evaluated(asked, tmp_path, broken=True)
    assert "<CONCLUSION>" in broken.predictions[WORDS]
    assert broken.score != ours(broken, asked) == found.score
    with pytest.raises(AssertionError):
        check(broken, asked, ours(broken, asked))


ASK = """
import json, sys
import PIL.Image
from lmms_eval.api.instance import Instance
from cot_engine.benchmarks.adapters.lmms_eval import CotEngine
from cot_engine import CotEngineError
picture = {"type": "image", "url": PIL.Image.new("RGB", (32, 16), "red")}
text = {"type": "text", "text": "How many are there?"}
documents = [[text, picture], [text], [{"type": "video", "url": "film.mp4"}, text]]
model = CotEngine(strategy="best-of-n", n=1, seed=5, traces=sys.argv[1], device="cpu")
model.task_dict = {"t": {"test": documents}}
def messages(document):
    return [{"role": "system", "content": "Be short."}, {"role": "user", "content": document}]
def request(place):
    of = {"task": "t", "doc_id": place, "repeats": 2}
    given = ("", messages, {"temperature": 0}, place, "t", "test")
    return Instance("generate_until", given, 0, metadata=of)
made = [request(place) for place in range(3)]
results = model.generate_until([made[0], made[0], made[1], made[1], made[2]])
try:
    model.loglikelihood([])
except CotEngineError as error:
    said = str(error)
print(json.dumps([[[r.text, r.token_counts.to_dict()] for r in results], said]))
"""


def test_repeats_are_drawn_apart_and_what_cannot_be_asked_is_named(tmp_path):
    results, said = in_python("lmms-eval", ASK, tmp_path, folder=tmp_path)
    columns = [tokens["cot_engine"] for _, tokens in results]
    assert [each.get("seed") for each in columns] == [5, 6, 5, 6, None]
    starts = [Trace.read(each["trace"]).started for each in columns[:4]]
    assert [len(each.images) for each in starts] == [1, 1, 0, 0]
    assert {each.question for each in starts} == {"Be short.\n\nHow many are there?"}
    assert results[4][0] == FAILED and "type video" in columns[4]["error"]
    assert "log-likelihoods" in said
