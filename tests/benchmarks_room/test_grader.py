"""A model decides what the rules leave open, and is asked each thing once."""

import json

import pytest
from openai_server import serving

from cot_engine.backends.opening import open_backend
from cot_engine.benchmarks.catalogue import benchmark
from cot_engine.benchmarks.grader import Verdicts, ask, digest, name_of, prompt_of
from cot_engine.benchmarks.predictions import read_cases
from cot_engine.benchmarks.rulesets import rule_set
from cot_engine.benchmarks.scoring import score
from cot_engine.errors import ConfigError, ModelError, StoreError
from cot_engine.testing import ScriptedBackend

HEAD = "index\tquestion\tA\tB\tanswer\tcategory\tprediction\n"
ROWS = (
    "1\tWhich?\tred\tblue\tA\tmath\tA\n"
    "2\tWhich?\tred\tblue\tB\tmath\tred or blue\n"
    "3\tWhich?\tred\tblue\tB\tmath\tthe colour of the sky\n"
    "4\tWhich?\tred\tblue\tB\tmath\tno idea\n"
)


STAGED = "<REASONING>A and B.</REASONING><CONCLUSION>Z</CONCLUSION>"


class Model(ScriptedBackend):
    """Finds the sky blue; of what it does not know it says none, or nothing that can be read."""

    def __init__(self, **more):
        super().__init__(script=self.reply, **more)

    @staticmethod
    def reply(request, seed):
        text = request.prompt.text
        thought = "<think>A or B?</think>B"
        return thought if "sky" in text else STAGED if "red or blue" in text else "Who knows?"


def found(path, replies=None, by="", name="MMStar", rules="vlmevalkit-2026"):
    of = benchmark(name)
    return score(read_cases(path, of), of, rule_set(rules, of), replies, by)


@pytest.fixture
def predictions(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text(HEAD + ROWS)
    return path


@pytest.mark.parametrize("rules", ["vlmevalkit-2024", "vlmevalkit-2026", "conclusion"])
def test_each_open_prediction_is_asked_about_once(tmp_path, predictions, rules):
    open_ = found(predictions, rules=rules).unresolved
    assert [mark.id for mark in open_] == ["2", "3", "4"]
    model, verdicts = Model(), Verdicts.read(tmp_path / "v.jsonl")
    done = []
    replies = ask(model, "choice", open_, verdicts, done.append)
    assert done == [1, 2, 3] and len(model.requests) == 3
    assert {*model.released} == {request.scope for request in model.requests}
    after = found(predictions, replies, name_of(model), rules=rules)
    assert [mark.score for mark in after.marks] == [1.0, 0.0, 1.0, None]
    assert [mark.by for mark in after.marks] == ["rules", *[name_of(model)] * 3]
    assert after.marks[3].open and "Who knows?" in after.marks[3].why
    again = Model()
    assert ask(again, "choice", open_, Verdicts.read(tmp_path / "v.jsonl")) == replies
    assert not again.requests
    assert not list(tmp_path.glob("*.lock"))


def test_a_server_may_be_the_grader(tmp_path, predictions):
    open_ = found(predictions).unresolved
    here = ask(Model(), "choice", open_, Verdicts.read(tmp_path / "here.jsonl"))
    with serving(Model()) as served:
        backend = open_backend(served.url)
        try:
            replies = ask(backend, "choice", open_, Verdicts.read(tmp_path / "v.jsonl"))
        finally:
            backend.close()
    assert replies == here and name_of(backend) == "served"


def test_the_grader_sees_the_conclusion_and_no_standard_answer(predictions):
    text = "<REASONING>secret</REASONING><CONCLUSION>the sky's</CONCLUSION>"
    question = found(predictions).marks[2].case.question
    said = prompt_of("choice", question, text)
    assert "the sky's" in said and "secret" not in said
    assert "right" not in said.replace("whether or not that is right", "")


def test_a_line_that_was_cut_off_is_asked_again(tmp_path, predictions):
    path, model = tmp_path / "v.jsonl", Model()
    open_ = found(predictions).unresolved
    ask(model, "choice", open_, Verdicts.read(path))
    path.write_bytes(path.read_bytes()[:-20])
    ask(model, "choice", open_, Verdicts.read(path))
    assert len(model.requests) == 4
    assert len(Verdicts.read(path).replies) == 3


def test_verdicts_of_several_models_are_not_mixed(tmp_path, predictions):
    path, open_ = tmp_path / "v.jsonl", found(predictions).unresolved
    rows = [
        {"model": model, "prompt": digest("choice", open_[1]), "reply": reply}
        for model, reply in (("one", "A"), ("two", "B"))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    verdicts = Verdicts.read(path)
    assert verdicts.of("choice", open_, "two") == {"3": "B"}
    with pytest.raises(ConfigError, match="of 2 models"):
        verdicts.of("choice", open_)
    path.write_text('{"reply": "A"}')
    with pytest.raises(StoreError, match="line 1: there is no model"):
        Verdicts.read(path)
    path.write_text("no JSON")
    with pytest.raises(StoreError, match="line 1: this is not JSON"):
        Verdicts.read(path)
    assert not Verdicts.read(tmp_path / "none.jsonl").replies
    with pytest.raises(StoreError, match=r"no file of verdicts .*none.jsonl"):
        Verdicts.read(tmp_path / "none.jsonl", needed=True)
    with pytest.raises(StoreError, match="The file of verdicts is"):
        Verdicts.read(tmp_path / "none.txt")  # what a model would write there, nobody could read


def test_a_model_that_fails_keeps_what_was_replied(tmp_path, predictions):
    class Failing(Model):
        async def generate(self, request):
            if "no idea" in request.prompt.text:
                raise ModelError("It is gone.")
            return await super().generate(request)

    path = tmp_path / "v.jsonl"
    with pytest.raises(ModelError, match="It is gone"):
        ask(Failing(), "choice", found(predictions).unresolved, Verdicts.read(path))
    kept, model = len(Verdicts.read(path).replies), Model()
    ask(model, "choice", found(predictions).unresolved, Verdicts.read(path))
    assert kept + len(model.requests) == 3 and not list(tmp_path.glob("*.lock"))


def test_mmvet_is_graded_and_says_by_whom(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text(
        "index\tquestion\tanswer\tcategory\tprediction\n"
        "1\tWhat is x?\t-1<AND>-5\tocr,math\t-1\n2\tWhat?\t5\tspat\tfive\n"
    )
    model = ScriptedBackend(
        script=lambda request, seed: "0.5" if "x" in request.prompt.text else "?"
    )
    open_ = found(path, name="MMVet").unresolved
    replies = ask(model, "graded", open_, Verdicts.read(tmp_path / "v.jsonl"))
    assert "Right answer: -1 and -5" in model.requests[0].prompt.text
    after = found(path, replies, name_of(model), name="MMVet")
    assert [mark.score for mark in after.marks] == [0.5, None]
    assert after.marks[0].by == "scripted@0"


def test_an_extraction_is_read_by_the_rules(tmp_path):
    path = tmp_path / "p.json"
    row = {
        "question": "How many?",
        "question_type": "free_form",
        "answer_type": "integer",
        "answer": "14",
        "choices": None,
        "precision": None,
        "metadata": {"skills": ["counting"]},
    }
    path.write_text(json.dumps({"7": row | {"pid": "7", "response": "There are 14 of them."}}))
    before = found(path, name="MathVista", rules="official")
    assert before.unresolved and before.overall.scored == 0
    model = ScriptedBackend(script=lambda request, seed: "14.0")
    replies = ask(model, "mathvista", before.unresolved, Verdicts.read(tmp_path / "v.jsonl"))
    assert "a whole number" in model.requests[0].prompt.text
    for rules, wanted in (("official", 1.0), ("official-int", 0.0), ("vlmevalkit-2026", 0.0)):
        after = found(path, replies, "x", name="MathVista", rules=rules)
        assert after.overall.score == wanted and after.tables[-1].cells[0].name == "counting"
