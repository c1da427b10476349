"""Judges examined for real: on the bundled model, judges whose worth is known come out as they are;
on the scripted one, the command."""

from __future__ import annotations

import json
import math
import os
import random
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import scripted_cli
from command_line import two_lines

from cot_engine import Engine, RunConfig
from cot_engine.cli.judge_report import plain
from cot_engine.core.events import Selected
from cot_engine.core.grammar import conclusion, read
from cot_engine.core.match import Verdict
from cot_engine.errors import InputError
from cot_engine.judging.judges import JUDGES, OracleJudge, SelfJudge
from cot_engine.judging.profile import Profile
from cot_engine.questions.data import load_data
from cot_engine.report.judge_report import Examination, examine, report
from cot_engine.testing import ScriptedBackend

HOT = RunConfig(temperature=1.2, top_p=1.0, top_k=0, mode="trained")


@dataclass(frozen=True)
class AlwaysFirst:
    """Names whichever stands first."""

    symmetric: ClassVar[bool] = False

    async def compare(self, pairs, case, ask):
        return [Verdict("first", 1.0) for _ in pairs]


@dataclass
class Looking:
    """Asks the model, and keeps what it was shown."""

    shown: ClassVar[list] = []
    symmetric: ClassVar[bool] = False

    async def compare(self, pairs, case, ask):
        self.shown.append((case.problem.id, tuple(image.digest for image in case.images)))
        return await SelfJudge().compare(pairs, case, ask)


NAMES = ("oracle", "first", "random", "looking")


@pytest.fixture(scope="module")
def data():
    return load_data("scenes/val", n=9, seed=4)  # twins and shared among them: guesses


@pytest.fixture(scope="module")
def found(data):
    """(the report, what was done) of judges of known worth."""
    items = {item.id: item for item in data.items}

    def quality(problem, chain, plan):
        """An answer's score; of a caption its facts; nothing else is known to it."""
        contents = read(chain.text, plan).contents
        item = items[problem.id]
        if chain.done:
            return item.grade(conclusion(chain.text, plan))
        return item.facts("CAPTION", contents.get("CAPTION", "")) or 0.0

    extra = {"oracle": lambda: OracleJudge(quality=quality), "first": AlwaysFirst}
    extra["looking"] = Looking
    with pytest.MonkeyPatch.context() as patch, Engine.from_pretrained() as engine:
        for name, make in extra.items():
            patch.setitem(JUDGES, name, make)
        todo = Examination(HOT, (*NAMES, "likelihood"), n=4)
        done = []
        examine(engine, data.items, todo, done.append)
        yield report(data, engine, todo, done), done


def of(report, judge, image="seen"):
    return {(c.stage, c.measure): c for c in report.cards if (c.judge, c.image) == (judge, image)}


def test_every_judge_was_asked_about_the_same_pairs(found):
    by_judge = [of(found[0], name) for name in NAMES]
    for cards in zip(*[cards.values() for cards in by_judge], strict=True):
        assert len({(c.stage, c.measure, c.matches, c.pairs, c.problems) for c in cards}) == 1
    assert by_judge[0]["whole", "worth"].pairs > 5 and by_judge[0]["CAPTION", "facts"].pairs > 5
    for done in found[1]:
        for held in done.held.values():
            for contest in held:
                names = {n for m in contest.matches for n in (m.first, m.second)}
                met = {frozenset((m.first, m.second)) for m in contest.matches}
                assert len(contest.matches) == len(met) == math.comb(len(names), 2)


def test_the_oracle_is_right(found):
    cards = of(found[0], "oracle")
    for key in (("whole", "worth"), ("CONCLUSION", "worth"), ("CAPTION", "facts")):
        if key in cards and cards[key].pairs:
            card = cards[key]
            assert card.right.estimate == card.strict.estimate == card.leaning.estimate == 1
            assert not card.cycles
            # Only a fault can keep the best one out.
            assert card.gain.selected.estimate <= card.gain.oracle.estimate
    gains = cards["whole", "worth"].gain
    assert gains.selected.estimate > gains.random.estimate


def test_naming_the_first_is_half_right_and_flips_every_time(found):
    for card in of(found[0], "first").values():
        assert card.flips == 1 and card.ties == 1 and card.first.estimate == 0.5
        if card.pairs:
            assert card.right.estimate == 0.5 and card.strict.estimate == 0


def test_a_coin_is_a_coin(found):
    engine, done = Engine(ScriptedBackend()), []
    todo = Examination(RunConfig(mode="trained"), ("random",), n=6)
    many = load_data("scenes/val", n=150, seed=1)
    examine(engine, many.items, todo, done.append)
    for card in report(many, engine, todo, done).cards:
        if card.problems > 50:
            assert card.right.low < 0.5 < card.right.high and card.right.high < 0.65
            assert card.flips is None and card.ties == 0 and abs(card.first.estimate) < 0.1
            assert abs(card.cycles - 0.25) < 0.1
    for card in of(found[0], "random").values():
        assert not card.pairs or card.right.low < 0.5 < card.right.high


def test_controls_are_held_where_a_judge_asks_the_model(found, data):
    report, done = found
    assert of(report, "looking", "blank").keys() == of(report, "looking").keys()
    assert of(report, "looking", "swap").keys() == of(report, "looking").keys()
    for name in ("oracle", "first", "random"):
        assert not of(report, name, "blank") and not of(report, name, "swap")
    judged = {e.problem for e in done if any(c.matches for c in e.held["looking", "seen"])}
    own = {item.id: item.problem().images[0].digest for item in data.items}
    for problem in judged:
        digests = {images[0] for name, images in Looking.shown if name == problem}
        assert len(digests) == 3 and own[problem] in digests
    controls = [c for c in report.controls if (c.stage, c.measure) == ("whole", "worth")]
    assert [c.image for c in controls] == ["blank", "swap"]
    seen, blank = (of(report, "looking", i)["whole", "worth"] for i in ("seen", "blank"))
    assert controls[0].difference.difference.estimate == pytest.approx(
        seen.leaning.estimate - blank.leaning.estimate
    )


def test_judges_that_ask_are_held_against_likelihood_on_the_same_pairs(found):
    report, _ = found
    assert {over.judge for over in report.over_likelihood} == {"looking"}
    (over,) = (o for o in report.over_likelihood if (o.stage, o.measure) == ("whole", "worth"))
    own, free = (of(report, name)["whole", "worth"] for name in ("looking", "likelihood"))
    assert over.difference.problems == own.problems == free.problems > 0
    assert over.difference.difference.estimate == pytest.approx(
        own.leaning.estimate - free.leaning.estimate
    )


def test_json_holds_no_nan(found):
    text = json.dumps(plain(found[0]), allow_nan=False)
    assert {card["judge"] for card in json.loads(text)["cards"]} >= {"oracle", "random"}


def test_a_problem_is_the_same_alone_and_among_others(found, data):
    with Engine.from_pretrained() as engine:
        alone = []
        todo = Examination(HOT, ("random",), n=4)
        examine(engine, data.items[3:4], todo, alone.append)
    [among] = [each for each in found[1] if each.problem == alone[0].problem]
    for a, b in zip(alone[0].held["random", "seen"], among.held["random", "seen"], strict=True):
        assert (a.candidates, a.matches, a.outcomes, a.chosen) == (
            b.candidates,
            b.matches,
            b.outcomes,
            b.chosen,
        )


# --- judging again, on which it stands -----------------------------------------------------------


@pytest.mark.parametrize("image", ["seen", "blank", "swap"])
def test_judging_again_costs_and_says_what_it_did_in_the_search(data, image):
    run = {"config": HOT, "strategy": "stage-beam", "n": 4, "judge": SelfJudge(least_mass=0.0)}
    with Engine.from_pretrained() as engine:
        answer = engine.solve(data.items[1].problem(), judge_image=image, **run)
        again = engine.rejudge(answer.trace, judge=run["judge"], judge_image=image)
    for selection in again.selections:
        assert selection.after.matches == selection.before.matches
        for name in ("encodes", "prefilled", "cached", "decoded", "flops", "calls"):
            assert getattr(selection.after.usage, name) == getattr(selection.before.usage, name)
    assert again.judge_image == image
    assert any(e.usage.calls for e in answer.trace if isinstance(e, Selected))


# --- the command ---------------------------------------------------------------------------------

ASK = ("judge-report", "--problems", "6", "--judge", "likelihood", "--judge", "random")


def test_tables_go_to_stdout_and_progress_to_stderr(cli):
    done = cli(*ASK, "-n", "3")
    assert done.returncode == 0, done.stderr
    assert "6 of 6 problems" in done.stderr and "Loading bundled" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("likelihood, the model's own judge, ")
    assert lines[1] == "Nothing failed: 6 problems, and every verdict could be read."
    assert lines[3].startswith("Judges on 6 problems of scenes-2/val/0, model scripted")
    assert any(line.startswith("CAPTION, by whether the text itself is right") for line in lines)
    assert any(line.startswith("whole: ") for line in lines)
    assert sum(line.startswith("random") for line in lines) >= 5
    assert cli(*ASK, "-n", "3", "-q").stderr == ""


def test_json_and_out_are_the_same(cli, tmp_path):
    path = tmp_path / "deep" / "report.json"
    done = cli(*ASK, "--json", "--out", path, "-s", "best-of-n", "--seed", "3")
    assert json.loads(done.stdout) == json.loads(path.read_text())
    got = json.loads(done.stdout)
    assert (got["asked"], got["done"], got["failed"]) == (6, 6, 0)
    assert got["about"]["strategies"] == ["best-of-n"] and got["about"]["seed"] == 3
    assert {card["stage"] for card in got["cards"]} == {"whole"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_costs_the_file_and_not_the_report(cli):
    done = cli("judge-report", "--problems", "2", "--judge", "likelihood", "--out", "/dev/full")
    assert done.returncode == 2 and "Judges on 2 problems" in done.stdout
    assert "'/dev/full' cannot be written: No space left" in done.stderr and "--out" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--judge", "slef"], ["slef", "Did you mean self"]),
        (["-s", "stage-bema"], ["stage-bema", "stage-beam"]),
        (["--data", "nowhere"], ["nowhere", "scenes"]),
        (["--problems", "-1"], ["problems is -1", "1 or more"]),
        (["-n", "0"], ["n is 0", "from 1"]),
        (["--rollouts", "-1"], ["rollouts is -1", "from 0"]),
        (["-t", "-3"], ["temperature", "-3"]),
        (["--write-profile"], ["--write-profile", "--fit"]),
        (["--fit", "--judge", "self"], ["self and likelihood", "--judge likelihood"]),
        (["--fit", "--write-profile", "-m", "some/hub-name"], ["some/hub-name", "no folder"]),
        (["--fit", "--judge", "self+likelihood"], ["self and likelihood", "--judge self"]),
        (["--out", "/dev/null/x.json"], ["/dev/null/x.json", "--out"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:40],
)
def test_mistakes_are_explained_before_the_model_loads(cli, tmp_path, arguments, words):
    seen = tmp_path / "loaded"
    said = two_lines(cli("judge-report", *arguments, SEEN=seen))
    for word in words:
        assert word in said
    assert not seen.exists()


def test_an_interrupt_reports_on_what_was_done(cli, monkeypatch, tmp_path):
    """As Ctrl-C does: after two problems."""
    from cot_engine.report import judge_report

    def some(engine, items, todo, on_done, parts):
        examine(engine, items[:2], todo, on_done, parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(judge_report, "examine", some)
    path = tmp_path / "r.json"
    done = cli(*ASK, "--out", path)
    assert done.returncode == 130
    assert "Judges on 2 problems" in done.stdout
    assert "Interrupted" in done.stderr and "2 of 6" in done.stderr
    assert json.loads(path.read_text())["done"] == 2

    def none(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(judge_report, "examine", none)
    done = cli(*ASK)
    assert done.returncode == 130 and done.stdout == ""


def test_a_problem_that_fails_does_not_stop_the_others(cli, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [
        {"question": "How many?", "answer": "1", "image": name} for name in ("good.png", "bad.png")
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    done = cli("judge-report", "--data", path, "--judge", "random", "--json")
    got = json.loads(done.stdout)
    assert done.returncode == 0 and (got["done"], got["failed"]) == (2, 1)
    assert any("1 problems failed" in note and "bad.png" in note for note in got["notes"])
    assert next(iter(got)) == "verdict" and got["errors"] == {"ImageError": 1}

    path.write_text(json.dumps(rows[1]))
    done = cli("judge-report", "--data", path, "--judge", "random")
    assert "Failures: 1 of 1 problems failed (ImageError 1)." in done.stdout.splitlines()
    assert done.returncode == 2 and "All 1 problems failed" in done.stderr


def test_verdicts_that_cannot_be_read_and_matches_not_asked_about_are_counted(cli, monkeypatch):
    class Mumbles(AlwaysFirst):
        async def compare(self, pairs, case, ask):
            if case.stage and case.stage.tag == "CAPTION":
                raise InputError("Too long for the context.")
            return [Verdict("tie", readable=False) for _ in pairs]

    monkeypatch.setitem(JUDGES, "rationale", Mumbles)
    done = cli("judge-report", "--problems", "6", "-n", "3", "--judge", "rationale")
    [line] = [line for line in done.stdout.splitlines() if line.startswith("Failures: ")]
    found = re.fullmatch(
        r"Failures: (\d+) of (\d+) verdicts of rationale cannot be read; rationale was not"
        r" asked about (\d+) matches, for want of room or budget\.",
        line,
    )
    assert found and found[1] == found[2] and int(found[1]) > 5 and int(found[3]) > 1


def test_who_is_examined_by_default(cli, tmp_path):
    """The model's own judge first."""
    Profile("self+likelihood", "brief", 1.0).write(tmp_path)
    ask = ("judge-report", "-m", tmp_path, "--problems", "3", "-n", "3", "--no-controls", "--json")
    done = cli(*ask)
    judges = list(dict.fromkeys(card["judge"] for card in json.loads(done.stdout)["cards"]))
    assert judges == ["self+likelihood", "self", "likelihood", "random"]
    assert json.loads(done.stdout)["verdict"][0].startswith("self+likelihood, the model's own")
    done = cli(*ask, "--judge", "auto")
    assert {card["judge"] for card in json.loads(done.stdout)["cards"]} == {"self+likelihood"}


def test_the_tables_tell_what_asking_is_worth(cli):
    said = cli(
        "judge-report", "--problems", "12", "--judge", "self", "--judge", "likelihood"
    ).stdout
    assert re.search(
        r"^self leans to the better one [+-]\d\.\d{3} \([+-]\d\.\d{3} to [+-]\d\.\d{3}\) more often"
        r" than likelihood does, on the same pairs\.$",
        said,
        re.MULTILINE,
    )
    assert "likelihood leans" not in said  # it asks nobody


def test_controls_on_request(cli):
    def shown(*more):
        done = cli("judge-report", "--problems", "3", "--judge", "self", "--json", *more)
        return {card["image"] for card in json.loads(done.stdout)["cards"]}

    assert shown() == shown("--controls") == {"seen", "blank", "swap"}
    assert shown("--no-controls") == {"seen"}


@dataclass(frozen=True)
class Inkling:
    """Knows the right answer and mumbles: the truth, noise, and a liking for the first place."""

    answers: ClassVar[dict] = {}
    prompt: str = "full"
    symmetric: ClassVar[bool] = False

    async def compare(self, pairs, case, ask):
        def worth(chain):
            right = conclusion(chain.text, case.plan) == self.answers[case.problem.id]
            return 1.5 * right + random.Random(chain.text).gauss(0, 1.5)

        margins = [worth(a) - worth(b) + 0.1 for a, b in pairs]
        return [Verdict("first" if m > 0 else "second", m) for m in margins]


def reply(request, seed):
    """A response whose answer is right by a coin, that says little else."""
    answer = random.Random(f"{request.prompt.text}|{seed}").choice("12")
    return f"<SUMMARY>s{seed % 97}</SUMMARY><CAPTION>c</CAPTION><REASONING>r</REASONING>" + (
        f"<CONCLUSION>{answer}</CONCLUSION>"
    )


def test_a_weight_is_fitted_shown_and_written_only_when_asked(cli, tmp_path, monkeypatch):
    rows = [{"id": f"q{k}", "question": f"Is it {k}?", "answer": "1"} for k in range(60)]
    path, model = tmp_path / "data.jsonl", tmp_path / "model"
    path.write_text("\n".join(map(json.dumps, rows)))
    model.mkdir()
    Profile("self", "brief").write(model)
    monkeypatch.setattr(Inkling, "answers", {f"q{k}": "1" for k in range(60)})
    monkeypatch.setitem(JUDGES, "self", Inkling)
    monkeypatch.setattr(scripted_cli, "staged_reply", reply)
    asking = ("judge-report", "--data", path, "--problems", "60", "-s", "best-of-n", "-n", "4")
    run = (*asking, "-m", model, "--fit")

    done = cli(*run)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("self+likelihood: ")]
    assert Profile.of(model) == Profile("self", "brief"), "not asked to be written"

    done = cli(*run, "--write-profile", "--json")
    weight = json.loads(done.stdout)["weight"]
    shown = weight["weight"]
    assert f"weight {shown['estimate']:.3f} ({shown['low']:.3f} to {shown['high']:.3f})" in line
    assert f"{weight['pairs']:,} pairs of {weight['problems']} problems" in line
    assert weight["pairs"] >= 40 and shown["low"] < shown["estimate"] < shown["high"]
    assert "cot_engine.json" in done.stderr
    written = Profile.of(model)
    assert written == Profile("self", "brief", pytest.approx(shown["estimate"], rel=1e-3))

    monkeypatch.setitem(JUDGES, "self", SelfJudge)
    done = cli(*asking, "-m", model, "--judge", "self+likelihood", "--judge", "self", "--json")
    got = json.loads(done.stdout)
    assert {card["judge"] for card in got["cards"]} == {"self+likelihood", "self"}
    assert got["about"]["profile"]["likelihood_weight"] == written.likelihood_weight


def test_a_weight_that_cannot_be_fitted_loses_no_report(cli, tmp_path):
    out = tmp_path / "r.json"
    model = tmp_path / "model"
    model.mkdir()
    done = cli(*ASK, "--judge", "self", "--fit", "--write-profile", "-m", model, "--out", out)
    assert done.returncode == 2 and "No weight was fitted" in done.stderr
    assert "Judges on 6 problems" in done.stdout and "at least 40 on 20" in done.stdout
    assert json.loads(out.read_text())["weight"] is None and list(model.iterdir()) == []


def test_without_candidates_that_differ_it_says_so(monkeypatch):
    same = ScriptedBackend(script=lambda request, seed: scripted_cli.staged_reply(request, 0))
    data = load_data("scenes/val", n=2)
    todo = Examination(RunConfig(), ("random",))
    engine, done = Engine(same), []
    examine(engine, data.items, todo, done.append)
    got = report(data, engine, todo, done)
    assert got.cards == () and any("anywhere" in note for note in got.notes)
