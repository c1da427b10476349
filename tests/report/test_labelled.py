"""Judges and verifiers on files of labelled pairs and steps, in the benchmarks' own layouts."""

from __future__ import annotations

import json

import PIL.Image
import pytest

from cot_engine import Engine, RunConfig
from cot_engine.cli import main
from cot_engine.errors import ConfigError, InputError
from cot_engine.judging.profile import Profile
from cot_engine.report.judge_report import Examination, examine, report
from cot_engine.report.labelled import is_labelled, load_labelled
from cot_engine.testing import ScriptedBackend

PAIRS = [  # the longer one is the better one in three of four
    {"id": "a", "query": "Which?", "response": ["red red red", "blue"], "human_ranking": [0, 1]},
    {"id": "b", "query": "<image>\nHow?", "response": ["so", "so it is"], "human_ranking": [1, 0]},
    {"id": "c", "query": "Why?", "response": ["as it is", "so"], "human_ranking": [0, 1]},
    {"id": "d", "query": "Who?", "response": ["nobody at all", "me"], "human_ranking": [1, 0]},
]
STEPS = [
    {
        "question": "How many?",
        "answer": "2",
        "response": {
            "steps": ["There are two.", "Not three.", "So 2."],
            "process_correctness": [1, -1, 0],
        },
    },
    {"question": "Which?", "steps": ["It is red.", "Or blue."], "labels": [1, -1]},
]


def written(folder, rows, picture=True):
    if picture:
        PIL.Image.new("RGB", (9, 9), (200, 30, 30)).save(folder / "p.png")
        rows = [{**row, "image": "p.png"} for row in rows]
    path = folder / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def examined(path, *judges, prefer=len):
    data, labelled = load_labelled(path, None)
    todo = Examination(RunConfig(), judges, labelled=labelled)
    done = []
    with Engine(ScriptedBackend(prefer=lambda text: prefer(text) / 50)) as engine:
        examine(engine, data.items, todo, done.append)
        return report(data, engine, todo, done)


def cards(found, judge, image="seen"):
    (card,) = [c for c in found.cards if (c.judge, c.image) == (judge, image)]
    return card


def test_pairs_as_vl_rewardbench_has_them(tmp_path):
    path = written(tmp_path, PAIRS)
    assert is_labelled(path) and not is_labelled("scenes/val")
    found = examined(path, "self", "yes-no", "random")
    own, verifier = cards(found, "self"), cards(found, "yes-no")
    assert own.stage == "pairs" and own.pairs == verifier.pairs == 4 and own.matches == 4
    assert own.right.estimate == verifier.right.estimate == 0.75
    assert own.flips == 0.0 and verifier.flips is None  # whoever gives numbers is asked once
    assert own.cost.flops > 0 and verifier.cost.calls == 2
    # Does it look at the picture? These do not, and are seen not to.
    assert cards(found, "yes-no", "blank").right.estimate == 0.75
    controls = {(c.judge, c.image): c.difference.difference.estimate for c in found.controls}
    assert controls["yes-no", "blank"] == controls["self", "swap"] == 0.0
    worse = examined(path, "yes-no", prefer=lambda text: -len(text))
    assert cards(worse, "yes-no").right.estimate == 0.25


def test_steps_as_visualprocessbench_has_them(tmp_path):
    path = written(tmp_path, STEPS)

    def prefer(text):
        return 3.0 if text.endswith(("There are two.", "It is red.")) else 0.0

    found = examined(path, step_verifier(tmp_path), "random", prefer=prefer)
    (card,) = [c for c in found.cards if c.image == "seen" and c.judge != "random"]
    assert card.stage == "steps" and card.pairs == 2 and card.right.estimate == 1.0
    assert card.matches == 2  # a step that is neither right nor wrong is not asked about
    neither = {"question": "Who?", "steps": ["I.", "You."], "labels": [0, 0]}
    found = examined(written(tmp_path, [neither, *STEPS]), step_verifier(tmp_path), prefer=prefer)
    assert found.cards[0].pairs == 2 and not found.failed


def step_verifier(folder) -> str:
    path = folder / "step.toml"
    path.write_text(
        'kind = "token"\nchoices = ["+", "-"]\n'
        '[[turns]]\neach = true\ntext = "{step}"\n'
        '[[turns]]\neach = true\nspeaker = "assistant"\ntext = "{mark}+"\n',
        "utf-8",
    )
    return str(path)


def test_who_cannot_be_asked_is_said_first(tmp_path):
    steps, labelled = load_labelled(written(tmp_path, STEPS), 1)
    assert len(steps.items) == 1
    for judge, match in (("self", "compares pairs"), ("likelihood", "how likely")):
        with pytest.raises(ConfigError, match=match):
            Examination(RunConfig(), (judge,), labelled=labelled).resolve(Profile())
    pairs = load_labelled(written(tmp_path, PAIRS), None)[1]
    with pytest.raises(ConfigError, match="Leave --fit out"):
        Examination(RunConfig(), ("yes-no",), fit=True, labelled=pairs).resolve(Profile())


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"query": "q", "response": ["a", "b"], "human_ranking": [0]}, "Give 2 numbers"),
        ({"query": "q", "response": "a", "human_ranking": [0]}, "Give a list of texts"),
        ({"query": "q", "responses": ["a", "b"], "better": 2}, "Give 0 to 1"),
        ({"query": "q", "steps": ["a"], "labels": [2]}, "1, 0 or -1"),
        ({"query": "q", "steps": ["a", " "], "labels": [1, 1]}, "empty text"),
        ({"response": ["a", "b"], "human_ranking": [0, 1]}, "question"),
        ({"query": "q", "other": 1}, "A row has response and human_ranking"),
        (
            {"query": "q", "response": ["a", "b"], "human_rankin": [0]},
            "Is 'human_rankin' the column human_ra",
        ),
        ({"query": "q", "response": ["\ud800", "b"], "human_ranking": [0, 1]}, "half a character"),
    ],
)
def test_a_row_that_will_not_do_is_named(tmp_path, row, match):
    good = {"query": "q", "responses": ["a", "b"], "better": 0}
    path = written(tmp_path, [good, row], picture=False)
    with pytest.raises(InputError, match=match) as caught:
        load_labelled(path, None)
    assert "line 2" in str(caught.value)
    assert is_labelled(written(tmp_path, [row, good], picture=False)) == ("other" not in row)


def test_the_command(tmp_path, capsys, monkeypatch):
    path = written(tmp_path, PAIRS)
    from cot_engine.engine import facade

    made = {"prefer": lambda text: len(text) / 200}
    monkeypatch.setattr(facade, "open_backend", lambda *a, **k: ScriptedBackend(**made))
    command = ["judge-report", "--data", path, "--judge", "yes-no", "--judge", "random", "-q"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "known: which response people preferred" in told
    assert "pairs, by what people said: 4 pairs" in told and "grey" in told
    assert main([*command, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["about"]["labelled"] and plain["cards"][0]["cost"]["calls"] == 2
