"""RunConfig: its checks, its layers, its hash."""

import json
import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
from cot_engine_strategies.swires import Swires
from hypothesis import given
from hypothesis import strategies as st

from cot_engine.backends.server.opener import KEY
from cot_engine.core.stages import DEFAULT_PLAN, Plan, Stage
from cot_engine.errors import ConfigError, CotEngineError, InputError
from cot_engine.judging.profile import Profile
from cot_engine.options.config import KEYS, RunConfig
from cot_engine.options.layers import (
    SERVE_KEY_FILE,
    SERVE_KEYS,
    TEACHER_KEY,
    load_config,
    parse_parameters,
    typed,
)
from cot_engine.options.problem import MAX_QUESTION, check_question
from cot_engine.options.resolve import checked, resolve

WORDS = st.text(st.characters(codec="ascii"), max_size=8)


def refused(call, *words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.exit_code == 2 and caught.value.hint.strip()
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# --- the value -----------------------------------------------------------------------------------


def test_defaults_are_those_of_the_published_runs():
    config = RunConfig()
    assert (config.strategy, config.tournament, config.orders) == ("stage-beam", "knockout", "both")
    assert (config.temperature, config.top_p, config.top_k, config.seed) == (0.6, 0.9, 50, 0)
    assert config.plan is DEFAULT_PLAN and config.parameters == {} and config.budget is None


def test_it_is_frozen_and_hashable():
    config = RunConfig(parameters={"n": 4})
    with pytest.raises(FrozenInstanceError):
        config.seed = 3
    assert {config: 1}[RunConfig(parameters={"n": 4})] == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"parameters": {"n": 0}}, ["n is 0", "1 to 1024"]),
        ({"parameters": {"n": -1}}, ["n is -1", "1 to 1024"]),
        ({"parameters": {"n": 1_000_000}}, ["n is 1000000", "1 to 1024"]),
        ({"parameters": {"keep": 0}}, ["keep is 0", "1 to 1024"]),
        ({"parameters": {"n": 2.5}}, ["n is 2.5", "whole number"]),
        ({"parameters": {"n": True}}, ["n is True", "whole number"]),
        ({"parameters": ["n=3"]}, ["parameters is"]),
        ({"temperature": -0.1}, ["temperature is -0.1", "0 to 100"]),
        ({"temperature": math.nan}, ["temperature is nan"]),
        ({"temperature": math.inf}, ["temperature is inf"]),
        ({"temperature": "warm"}, ["temperature is 'warm'"]),
        ({"top_p": 0}, ["top_p is 0", "more than 0"]),
        ({"top_p": 1.01}, ["top_p is 1.01"]),
        ({"top_k": -1}, ["top_k is -1", "from 0"]),
        ({"top_k": 1.5}, ["top_k is 1.5", "whole"]),
        ({"seed": -1}, ["seed is -1"]),
        ({"seed": 2**63}, ["seed is"]),
        ({"in_flight": 0}, ["in_flight is 0", "1 to 1024"]),
        ({"device": "gpu"}, ["device is 'gpu'", "cuda"]),
        ({"device": "cuda:x"}, ["cuda:N"]),
        ({"dtype": "bf16"}, ["dtype is 'bf16'", "bfloat16"]),
        ({"quantize": "8"}, ["quantize is '8'", "8bit or 4bit"]),
        ({"max_pixels": 0}, ["max_pixels is 0", "from 784"]),
        ({"max_pixels": -5}, ["max_pixels is -5", "width times height"]),
        ({"max_pixels": 1.5e6}, ["max_pixels is 1500000.0", "whole number"]),
        ({"max_pixels": "1.5MP"}, ["max_pixels is '1.5MP'", "1000000 for one megapixel"]),
        ({"orders": "bath"}, ["Did you mean both?", "both or one"]),
        ({"judge_image": "blnk"}, ["Did you mean blank?", "seen, blank or swap"]),
        ({"detail": "long"}, ["brief, normal or full"]),
        ({"mode": "promted"}, ["Did you mean prompted?"]),
        ({"model": " "}, ["model is ' '"]),
        ({"strategy": None}, ["strategy is None"]),
        ({"budget": 12}, ["budget is 12"]),
        ({"plan": 3}, ["plan is 3", "TOML"]),
        ({"allow_url": "yes"}, ["allow_url is 'yes'", 'true, false or "inner"']),
    ],
)
def test_values_out_of_range(values, words):
    refused(lambda: RunConfig(**values), *words)


def test_edges_are_allowed():
    RunConfig(parameters={"n": 1, "keep": 1024}, temperature=0, top_p=1, top_k=0, seed=2**63 - 1)
    RunConfig(device="cuda:1", temperature=100, in_flight=1024, top_p=1e-6)


def test_every_field_counts_in_the_hash():
    """A field added later must be part of the hash, or two different runs would be called one."""
    other = {
        "parameters": {"n": 3},
        "plan": Plan((Stage("ANSWER", "Say it.", "Which is right?"),)),
        "quantize": "8bit",
        "adapter": "lora",
        "max_pixels": 10**6,
        "probe": "none",
        "budget": "3 s",
        "allow_url": True,
        "device": "cpu",
        "dtype": "float32",
        "orders": "one",
        "judge_image": "blank",
        "detail": "full",
        "mode": "trained",
        "temperature": 0.7,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 3,
        "in_flight": 3,
        "memory": "1GB",
    }
    hashes = {replace(RunConfig(), **{key: other.get(key, "other")}).hash() for key in KEYS}
    assert len(hashes | {RunConfig().hash()}) == len(KEYS) + 1


def test_hash_is_the_same_in_another_process_and_order():
    config = RunConfig(parameters={"n": 4, "keep": 2})
    code = (
        "from cot_engine.options.config import RunConfig;"
        "print(RunConfig(parameters={'keep': 2, 'n': 4}).hash())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == config.hash() and len(config.hash()) == 16


# --- the question --------------------------------------------------------------------------------


def test_questions():
    for good in ("?", "x" * MAX_QUESTION, "Is </CONCLUSION> <image> </s> a tag?", "日本語は?"):
        assert check_question(good) == good
    for bad, word in [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("x" * 100_000, "100,000 characters; the limit is 20,000"),
        ("caf\udce9?", "not UTF-8"),
        (None, "NoneType"),
    ]:
        with pytest.raises(InputError, match=word) as caught:
            check_question(bad)
        assert caught.value.hint


# --- the layers ----------------------------------------------------------------------------------


def test_each_layer_goes_over_the_one_before(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('seed = 1\ntop_k = 1\ntop_p = 0.1\njudge = "random"\n[parameters]\nn = 2\n')
    environment = {"COT_ENGINE_SEED": "2", "COT_ENGINE_TOP_K": "2", "PATH": "/bin"}
    config = load_config(file, environment, {"seed": 3, "parameters": {"keep": 2}})
    assert (config.seed, config.top_k, config.top_p, config.judge) == (3, 2, 0.1, "random")
    assert config.parameters == {"n": 2, "keep": 2}
    assert config.detail == RunConfig().detail
    assert load_config() == RunConfig()


def test_another_strategy_does_not_inherit_parameters(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[parameters]\nn = 2\nkeep = 2\n")
    assert load_config(file, None, {"strategy": "best-of-n"}).parameters == {}
    own = load_config(file, None, {"strategy": "best-of-n", "parameters": {"n": 8}})
    assert own.parameters == {"n": 8}
    assert load_config(file, None, {"strategy": "stage-beam"}).parameters == {"n": 2, "keep": 2}


def test_environment_values_get_their_types():
    config = load_config(
        environment={
            "COT_ENGINE_TEMPERATURE": "0",
            "COT_ENGINE_ALLOW_URL": "true",
            "COT_ENGINE_BUDGET": "12 calls",
            "COT_ENGINE_MODEL": "7",
            "COT_ENGINE_PARAMETERS": "n=8, keep=2",
            "COT_ENGINE_QUANTIZE": "8bit",
            "COT_ENGINE_DEVICE": "",
        }
    )
    assert config.temperature == 0 and config.allow_url is True and config.budget == "12 calls"
    assert config.model == "7" and config.parameters == {"n": 8, "keep": 2}
    assert config.quantize == "8bit" and config.device == "auto"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"COT_ENGINE_SEDE": "1"}, ["COT_ENGINE_SEDE", "Did you mean COT_ENGINE_SEED"]),
        ({"COT_ENGINE_SEED": "one"}, ["seed is 'one' in the environment", "whole number"]),
        ({"COT_ENGINE_PARAMETERS": "n"}, ["'n'", "name=value"]),
        ({"COT_ENGINE_ALLOW_URL": "1"}, ["allow_url is 1", 'true, false or "inner"']),
    ],
)
def test_bad_environment(environment, words):
    refused(lambda: load_config(environment=environment), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sede = 1", ["sede", "Did you mean seed", "run.toml"]),
        ("fill = true", ["[parameters]"]),
        ("seed = 'x'", ["seed is 'x'", "run.toml"]),
        ("seed = x", ["not valid TOML", "line 1"]),
        ("parameters = 3", ["parameters is 3", "run.toml"]),
        ("plan = 'none.toml'", ["none.toml", "cannot be read"]),
        ("[parameters]\nn = 0", ["n is 0", "run.toml"]),
        ("\udcff", ["not valid TOML"]),
    ],
)
def test_bad_file(tmp_path, text, words):
    file = tmp_path / "run.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    for word in words:
        assert word in str(caught.value)


def test_missing_file(tmp_path):
    refused(lambda: load_config(tmp_path / "none.toml"), "none.toml", "No such file")


def test_a_plan_in_a_file_is_found_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    plan = '[[stage]]\ntag = "ANSWER"\npurpose = "Say it."\nquestion = "Which?"\n'
    (folder / "plan.toml").write_text(plan)
    (folder / "run.toml").write_text('plan = "plan.toml"\n')
    read = load_config("configs/run.toml").plan
    assert isinstance(read, Plan) and read.last.tag == "ANSWER"
    assert load_config(flags={"plan": "configs/plan.toml"}).plan == read


@pytest.mark.parametrize("name", ["stats", "text(low=1, high=0)", "nowhere.toml"])
def test_a_verifier_that_cannot_be_is_told_before_anything_is_written(name):
    named = {"strategy": "weighted-vote", "verifier": name}
    for options in (named, {"strategy": Swires(verifier=name)}):
        with pytest.raises(CotEngineError, match=r"no scorer 'stats'|is 1 to 0|nowhere\.toml"):
            checked(resolve(Profile(), None, options))


def test_parameters_as_text():
    assert parse_parameters(["n=4", "rate=0.5", "on=true", "how=fast=er"]) == {
        "n": 4,
        "rate": 0.5,
        "on": True,
        "how": "fast=er",
    }
    for bad in ("n", "=4", "n=", "a b=1"):
        refused(lambda bad=bad: parse_parameters([bad]), repr(bad), "name=value")


@given(st.dictionaries(st.sampled_from(KEYS), st.none() | st.integers() | WORDS))
def test_any_flags_give_a_config_or_a_clear_error(flags):
    flags.pop("plan", None)  # reads a file
    try:
        assert isinstance(load_config(flags=flags), RunConfig)
    except ConfigError as error:
        assert error.hint


@pytest.mark.parametrize("key", [*KEYS, "n", "keep"])
def test_each_key_means_the_same_in_a_file_the_environment_and_a_flag(tmp_path, key):
    (tmp_path / "plan.toml").write_text('[[stage]]\ntag = "A"\npurpose = "p"\nquestion = "q"\n')
    texts = {"model": "m", "device": "cpu", "dtype": "float32", "quantize": "8bit", "budget": "5 s"}
    texts |= {"strategy": "greedy", "judge": "random", "tournament": "swiss", "orders": "one"}
    texts |= {
        "adapter": "lora",
        "judge_image": "blank",
        "detail": "brief",
        "mode": "trained",
        "allow_url": "true",
        "max_pixels": "1000000",
        "probe": "none",
    }
    texts |= {
        "parameters": "fill=true",
        "plan": str(tmp_path / "plan.toml"),
    }
    text = texts.get(key, "1")
    plain = text if text in ("true", "1", "1000000") else json.dumps(text)
    file = tmp_path / "c.toml"
    file.write_text(f"{key} = {plain if key != 'parameters' else '{fill = true}'}\n")
    configs = [
        load_config(file),
        load_config(environment={f"COT_ENGINE_{key.upper()}": text}),
        load_config(flags={key: typed(key, text)}),
    ]
    assert configs[0] == configs[1] == configs[2] != RunConfig()


@pytest.mark.parametrize("name", [KEY, TEACHER_KEY, SERVE_KEYS, SERVE_KEY_FILE])
def test_keys_are_no_settings(name):
    assert load_config(environment={name: "secret"}) == RunConfig()


def test_a_variable_nearly_called_as_a_key_is_told():
    with pytest.raises(ConfigError, match="Did you mean COT_ENGINE_API_KEY"):
        load_config(environment={"COT_ENGINE_APIKEY": "secret"})
