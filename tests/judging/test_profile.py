"""What a model's folder says of judging: read, refused, written, and in force everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from command_line import two_lines

from cot_engine import Engine, RunConfig
from cot_engine.ablation.grid import load_ablation
from cot_engine.ablation.runner import ablate, plan_run, run_local
from cot_engine.ablation.store import Store
from cot_engine.core.requests import Choose
from cot_engine.engine.code import code_version
from cot_engine.errors import ConfigError, UnknownNameError
from cot_engine.judging.judges import ScorerJudge, SelfJudge, SelfLikelihoodJudge
from cot_engine.judging.profile import FILE, Profile
from cot_engine.judging.verifiers.files import made
from cot_engine.questions.data import load_data
from cot_engine.testing import ScriptedBackend

TRAINED = Profile("self+likelihood", "brief", 1.3)


def test_a_folder_without_one_has_the_default(tmp_path):
    assert Profile.of(tmp_path) == Profile.of(tmp_path / "nowhere") == Profile()
    assert Profile().make_judge() == SelfJudge()


def test_what_is_written_is_read(tmp_path):
    for profile in (Profile(), Profile("likelihood"), TRAINED, Profile(verifier="likelihood")):
        assert profile.write(tmp_path) == tmp_path / FILE
        assert Profile.of(tmp_path) == profile
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_judges_of_a_profile():
    assert TRAINED.make_judge() == SelfLikelihoodJudge(prompt="brief", weight=1.3)
    assert TRAINED.make_judge("self") == SelfJudge(prompt="brief")
    assert TRAINED.make_judge("likelihood") == ScorerJudge()
    with pytest.raises(ConfigError, match=r"likelihood_weight.*judge-report .*--fit"):
        Profile(judge_prompt="brief").make_judge("self+likelihood")
    with pytest.raises(UnknownNameError, match="Did you mean self"):
        TRAINED.make_judge("slef")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"jugde": "self"}', ["jugde", "Did you mean judge"]),
        ('{"judge": "slef"}', ["slef", "Did you mean self"]),
        ('{"judge": 3}', ["judge is 3", "name of a judge"]),
        ('{"judge_prompt": "breif"}', ["judge_prompt is 'breif'", "full or brief"]),
        ('{"judge_prompt": ["full"]}', ["judge_prompt is ['full']", "full or brief"]),
        ('{"likelihood_weight": "1"}', ["likelihood_weight is '1'", "finite number"]),
        ('{"likelihood_weight": true}', ["likelihood_weight is True", "finite number"]),
        ('{"likelihood_weight": NaN}', ["NaN is no number"]),
        ('{"likelihood_weight": 1' + "0" * 400 + "}", ["401 digits", "limit is 300"]),
        ('{"verifier": 3}', ["verifier is 3", "name of a scorer"]),
        ('{"verifier": "likelihod"}', ["likelihod", "Did you mean likelihood"]),
        ('["judge"]', ["['judge']", "object"]),
        ('{"judge": "self"', ["cannot be read", "delimiter"]),
        ("\udcff", ["cannot be read"]),
    ],
)
def test_what_will_not_do_is_explained(tmp_path, text, words):
    (tmp_path / FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises((ConfigError, UnknownNameError)) as error:
        Profile.of(tmp_path)
    for word in [*words, FILE]:
        assert word in str(error.value)


@pytest.mark.parametrize("key", ["judge", "verifier"])
@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("http://127.0.0.1:8000/v1", None),
        ("https://evil.example/v1", "evil.example"),
        ("http://localhost:1/v1, http://evil.example:8000/v1#served=x", "evil.example"),
    ],
)
def test_a_profile_sends_nothing_to_other_machines(tmp_path, key, address, named):
    """It comes with a model's weights, and may be anybody's."""
    text = f'kind = "token"\nask = "Right?"\nmodel = "{address}"\n'
    (tmp_path / "v.toml").write_text(text)
    (tmp_path / FILE).write_text(json.dumps({key: "v.toml"}))
    if named is None:
        assert getattr(Profile.of(tmp_path), key) == str(tmp_path / "v.toml")
        return
    with pytest.raises(ConfigError, match=f"sends what it judges to '{named}'"):
        Profile.of(tmp_path)


@pytest.mark.parametrize("name", ["../../x", "/dev/zero", "a/b", "..", "a\\b"])
def test_a_probe_lies_beside_its_profile(tmp_path, name):
    (tmp_path / FILE).write_text(json.dumps({"probe": name}))
    with pytest.raises(ConfigError, match="the name of a file beside it"):
        Profile.of(tmp_path)


def test_a_verifier_names_no_variable_that_its_key_is_in():
    """Whoever wrote the file could have any secret sent to himself."""
    table = {"kind": "token", "ask": "Right?", "model": "http://h/v1"}
    with pytest.raises(ConfigError, match="options has key_env"):
        made(table | {"options": {"key_env": "HOME"}}, Path())


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written.*by hand"):
        TRAINED.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        Profile().write(tmp_path / "nowhere")


# --- where it is in force ------------------------------------------------------------------------


def judged(engine, **options):
    """The turns that a judge asked about in a search."""
    engine.solve(None, "How many?", mode="trained", strategy="best-of-n", n=3, **options)
    return [r.prompt.text for r in engine.backend.requests if isinstance(r, Choose)]


def test_a_search_asks_as_the_profile_says():
    for name in ("auto", "self", "self+likelihood"):
        said = judged(Engine(ScriptedBackend(), profile=TRAINED), judge=name)
        assert said and set(said) == {"How many?\nCompare:\n"}
    assert "Reply with the number" in judged(Engine(ScriptedBackend()))[0]
    assert (
        "Reply with the number"
        in judged(Engine(ScriptedBackend(), profile=TRAINED), judge=SelfJudge())[0]
    )  # an object is taken as it is


def test_judging_again_does_too():
    engine = Engine(ScriptedBackend(), profile=TRAINED)
    answer = engine.solve(None, "How many?", mode="trained", strategy="best-of-n", n=3)
    before = len(engine.backend.requests)
    again = engine.rejudge(answer.trace)
    said = [r.prompt.text for r in engine.backend.requests[before:] if isinstance(r, Choose)]
    assert again.judge == "self+likelihood" and set(said) == {"How many?\nCompare:\n"}


def test_results_are_filed_by_what_the_profile_says_to_the_judges_of_the_grid():
    def code(judge, profile):
        return code_version([RunConfig(judge=judge)], profile)

    heavier = replace(TRAINED, likelihood_weight=1.4)
    assert code("self+likelihood", TRAINED) != code("self+likelihood", heavier)
    assert code("self", TRAINED) == code("self", heavier) != code("self", Profile())
    assert code("likelihood", TRAINED) == code("likelihood", Profile())


def test_results_are_filed_by_the_verifier_that_the_strategy_has():
    def code(profile=TRAINED, **parameters):
        vote = RunConfig(strategy="weighted-vote", parameters=parameters)
        return code_version([vote], profile)

    named = replace(TRAINED, verifier="states")
    assert code() == code(verifier="likelihood") != code(named) == code(verifier="states")
    with pytest.raises(UnknownNameError, match="Did you mean likelihood"):
        code(verifier="likelihod")


COMMANDS = {
    "solve": ("solve", "How many?", "--judge", "self+likelihood"),
    "judge-report": ("judge-report", "--judge", "self+likelihood", "--problems", "2"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_weight_that_is_missing_is_explained_before_the_model_loads(cli, tmp_path, command):
    seen = tmp_path / "seen"
    said = two_lines(cli(*COMMANDS[command], "--model", tmp_path, SEEN=seen))
    assert "likelihood_weight" in said and "--fit" in said and not seen.exists()
    TRAINED.write(tmp_path)
    done = cli(*COMMANDS[command], "--model", tmp_path, "--json")
    assert done.returncode == 0 and "self+likelihood" in done.stdout, done.stderr


def test_an_ablation_finds_out_before_its_first_search(tmp_path):
    backend = ScriptedBackend()
    backend.info = replace(backend.info, device="cpu", dtype="float32")  # as RunConfig knows them
    grid = tmp_path / "grid.toml"
    grid.write_text(
        '[data]\nsource = "scenes/val"\nn = 2\n[[cells]]\nstrategy = "best-of-n"\nn = 2\n'
        'judge = ["self", "self+likelihood"]\n'
    )
    ablation, data = load_ablation(grid), load_data("scenes/val", n=2)
    with pytest.raises(ConfigError, match="likelihood_weight"):
        plan_run(ablation, data, Engine(backend), "")
    engine = Engine(backend, profile=TRAINED)
    work, rows = plan_run(ablation, data, engine, ""), []
    with Store(tmp_path / "s.sqlite", create=True) as store:
        ablate(work, store, partial(run_local, engine, in_flight=2), on_row=rows.append)
    assert any("judge=self+likelihood" in cell.label for cell in work.cells.values())
    assert {row.status for row in rows} == {"ok"}
    said = {
        r.prompt.text.rpartition("\n")[0] for r in engine.backend.requests if isinstance(r, Choose)
    }
    assert said and all(text.endswith("\nCompare:") for text in said)


def test_a_trace_is_judged_by_the_profile_of_the_model_named(cli, picture, tmp_path):
    trace = tmp_path / "t.jsonl"
    assert cli("solve", picture, "How many?", "--trace", trace).returncode == 0
    again = ("trace", trace, "--judge", "self+likelihood", "--json")
    assert "likelihood_weight" in two_lines(cli(*again, COT_ENGINE_MODEL="scripted"))
    TRAINED.write(tmp_path)
    done = cli(*again, "--model", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rejudged"]["usage"]["calls"] > 0


@pytest.mark.parametrize("command", ["solve", "judge-report"])
def test_a_profile_with_a_mistake_is_named(cli, tmp_path, command):
    (tmp_path / FILE).write_text('{"judge_promt": "brief"}')
    arguments = ("How many?",) if command == "solve" else ()
    said = two_lines(cli(command, *arguments, "--model", tmp_path))
    assert "judge_promt" in said and "judge_prompt" in said
