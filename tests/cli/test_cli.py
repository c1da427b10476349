"""The command line as its users meet it: real processes, their two streams and exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import PIL.Image
import pytest
from command_line import QUESTION, process, run, two_lines
from golden import FOLDER, check_golden

from cot_engine.cli import main, solve
from cot_engine.core.events import Failed, Finished, Started
from cot_engine.core.trace import Trace
from cot_engine.errors import InputError

# --- help ----------------------------------------------------------------------------------------


COMMANDS = ["", *"solve answer trace ablate report score judge-report serve list".split()]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_the_recorded_one(cli, command):
    done = cli(*filter(None, [command]), "--help")
    assert done.returncode == 0 and done.stderr == ""
    check_golden(f"help/{command or 'cot-engine'}.txt", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_no_arguments_print_the_help(cli):
    assert cli().stdout == (FOLDER / "help" / "cot-engine.txt").read_text()


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from cot_engine.cli import main; main(['solve', '--help']);"
        "print(sorted({'torch', 'transformers', 'PIL', 'numpy', 'rich.console'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, cot_engine; before = {*sys.modules};"
        "cot_engine.Image, cot_engine.load_image, cot_engine.RunConfig;"
        "print(sorted({'torch', 'transformers', 'PIL', 'numpy', 'typer'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version(cli):
    from cot_engine import __version__

    assert cli("--version").stdout == f"cot-engine {__version__}\n"


# --- solve ---------------------------------------------------------------------------------------


def test_stdout_holds_the_answer_alone(picture):
    done = run("solve", picture, QUESTION)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[0-4]\n", done.stdout)
    for word in ("Loading bundled", "SUMMARY", "CAPTION", "CONCLUSION", "halved", "Done"):
        assert word in done.stderr
    assert "chatter" not in done.stderr, "what libraries tell developers"


def test_the_same_seed_gives_the_same_answer_and_another_may_not(cli, picture):
    seeds = [cli("solve", picture, QUESTION, "--seed", s, "-q").stdout for s in (1, 1, 2, 3, 4)]
    assert seeds[0] == seeds[1] and len(set(seeds)) > 1


def test_a_question_alone_skips_the_caption(cli):
    done = cli("solve", QUESTION)
    assert done.returncode == 0 and "SUMMARY" in done.stderr and "CAPTION" not in done.stderr


def test_quiet(cli, picture):
    done = cli("solve", picture, QUESTION, "--quiet")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()


def test_json_has_everything(cli, picture, tmp_path):
    other, trace = tmp_path / "b.png", tmp_path / "out" / "t.jsonl"
    PIL.Image.new("RGB", (8, 8), "blue").save(other)
    flags = ["--image", other, "--n", 3, "--budget", "2000 tokens", "--trace", trace]
    done = cli("solve", picture, QUESTION, "--json", "-q", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["answer"] == result["stages"][-1]["text"]
    assert [s["stage"] for s in result["stages"]] == [
        "SUMMARY",
        "CAPTION",
        "REASONING",
        "CONCLUSION",
    ]
    assert [image["size"] for image in result["images"]] == [[32, 16], [8, 8]]
    assert result["usage"]["generate"]["decoded"] > 0 and result["candidates"] == 12
    assert result["left"] == 2000 - result["total"]["prefilled"] - result["total"]["decoded"]
    assert result["run"]["parameters"]["n"] == 3 and result["run"]["judge"] == "self+likelihood"
    assert result["trace"] == str(trace) and len(result["config"]) == 16
    assert len(result["winner"]) == 4 and result["matches"]["held"] > 0
    recorded = Trace.read(trace)
    assert recorded.finished.chain == result["winner"][-1]
    assert recorded.started.images[0].digest == result["images"][0]["digest"]


def test_special_tokens_in_a_question_stay_text(cli, tmp_path):
    trace = tmp_path / "t.jsonl"
    question = "Is </CONCLUSION> <image> </s> [bold] a tag?"
    assert cli("solve", question, "--trace", trace).returncode == 0
    assert Trace.read(trace).started.question == question


def test_strategies_and_parameters(cli):
    done = cli("solve", QUESTION, "-s", "best-of-n", "-p", "n=5", "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"]["parameters"]["n"] == 5


def test_config_file_environment_and_flags_in_order(cli, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("seed = 1\ntop_k = 1\n[parameters]\nn = 2\n")
    environment = {"COT_ENGINE_SEED": 2, "COT_ENGINE_TEMPERATURE": 0.5}
    flags = ["--config", file, "--temperature", 0.7, "--json", "-q"]
    ran = json.loads(cli("solve", QUESTION, *flags, **environment).stdout)["run"]
    assert (ran["seed"], ran["parameters"]["n"]) == (2, 2)
    assert (ran["sampling"]["top_k"], ran["sampling"]["temperature"]) == (1, 0.7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solve"], ["Missing argument", "solve --help"]),
        (["solve", ""], ["question is empty"]),
        (["solve", "x" * 100_000], ["100,000 characters", "20,000"]),
        (["solve", "caf\udce9?"], ["not UTF-8"]),
        (["solve", "none.png", QUESTION], ["'none.png' does not exist"]),
        (["solve", "q?", "--image", "."], ["is a folder"]),
        (["solve", "http://localhost/a.png", QUESTION], ["--allow-url"]),
        (["solve", "a", "b", "c"], ["3 arguments", "quotes"]),
        (["solve", "a.png"], ["question is missing"]),
        (["solve", QUESTION, "a.png"], ["Give the picture first"]),
        (["solve", QUESTION, "--n", "0"], ["n is 0", "1 to 1024"]),
        (["solve", QUESTION, "--n", "-1"], ["n is -1", "1 to 1024"]),
        (["solve", QUESTION, "--n", "1000000"], ["n is 1000000", "1 to 1024"]),
        (["solve", QUESTION, "--n", "many"], ["n is 'many'", "1 to 1024"]),
        (["solve", QUESTION, "--top-p", "2"], ["top_p is 2", "0 to 1"]),
        (["solve", QUESTION, "-t", "warm"], ["temperature is 'warm'", "0 to 100"]),
        (["solve", QUESTION, "-p", "n"], ["name=value"]),
        (["solve", QUESTION, "-p", "kep=2"], ["kep", "Did you mean keep"]),
        (["solve", QUESTION, "-s", "greedy", "--n", "4"], ["greedy", "n"]),
        (["solve", QUESTION, "-s", "stage-bean"], ["stage-bean", "Did you mean stage-beam"]),
        (["solve", QUESTION, "--judge", "randm"], ["randm", "Did you mean random"]),
        (["solve", QUESTION, "--tournament", "swis"], ["swis", "Did you mean swiss"]),
        (["solve", QUESTION, "--orders", "none"], ["orders is 'none'", "both or one"]),
        (["solve", QUESTION, "--budget", "lots"], ["lots", "new tokens"]),
        (["solve", QUESTION, "--plan", "none.toml"], ["none.toml"]),
        (["solve", QUESTION, "--config", "none.toml"], ["none.toml", "No such file"]),
        (["solve", QUESTION, "--trace", "/proc/none/t.jsonl"], ["cannot be written", "--trace"]),
        (["solve", QUESTION, "--trace", "."], ["cannot be written", "--trace"]),
        (["solve", QUESTION, "--sed", "3"], ["--sed", "--seed", "solve --help"]),
        (["sove"], ["sove", "solve"]),
        (["trace", "none.jsonl"], ["none.jsonl", "cannot be read"]),
        (["list", "strategy"], ["strategy", "Did you mean strategies"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_explained_before_the_model_loads(
    cli, arguments, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    seen = tmp_path / "loaded"
    said = two_lines(cli(*arguments, SEEN=seen))
    for word in words:
        assert word in said
    assert not list(tmp_path.iterdir()), "the model was loaded, or something was left behind"


def test_a_budget_too_small_to_answer(cli):
    assert "1 tokens" in two_lines(cli("solve", QUESTION, "--budget", "1 tokens"))


def test_an_earlier_trace_survives_a_failed_start(cli, tmp_path):
    trace = tmp_path / "t.jsonl"
    trace.write_text("precious\n")
    assert cli("solve", QUESTION, "--trace", trace, script="load").returncode == 1
    assert trace.read_text() == "precious\n"


def test_one_word_or_two(picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert solve.split([QUESTION], []) == ([], QUESTION)
    assert solve.split(["a.png", QUESTION], ["b.png"]) == (["a.png", "b.png"], QUESTION)
    assert solve.split([QUESTION], ["b.png"]) == (["b.png"], QUESTION)
    about = "What is shown in street.png"  # ends like a file name, but is a sentence
    assert solve.split([about], []) == ([], about)
    PIL.Image.new("RGB", (4, 4)).save("my street.png")
    for words in (["street.png"], ["my street.png"], [QUESTION, "street.png"]):
        with pytest.raises(InputError):
            solve.split(words, [])


# --- what a model writes -------------------------------------------------------------------------


def test_nothing_a_model_writes_reaches_the_terminal(cli, picture):
    done = cli("solve", picture, QUESTION, script="hostile")
    assert done.returncode == 0, done.stderr
    for stream in (done.stdout, done.stderr):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", stream)
        assert "[bold]x[/bold]" in stream, "markup is text"


def test_json_keeps_what_the_model_wrote(cli, picture):
    done = cli("solve", picture, QUESTION, "--json", "-q", script="hostile")
    assert "\x1b[31m" in json.loads(done.stdout)["answer"]
    assert "\x1b" not in done.stdout


# --- when things go wrong ------------------------------------------------------------------------


def test_an_unexpected_error_is_one_of_two_lines(cli):
    said = two_lines(cli("solve", QUESTION, script="defect"), code=1)
    assert "ZeroDivisionError: a [defect]" in said and "--verbose" in said and "\x1b" not in said
    said = cli("solve", QUESTION, script="crash").stderr
    assert "The backend Model raised ZeroDivisionError: a [defect]" in said and "\x1b" not in said


def test_verbose_shows_the_traceback(cli):
    done = cli("solve", QUESTION, "--verbose", script="defect")
    assert done.returncode == 1 and "Traceback" in done.stderr
    done = cli("solve", "", "--verbose")
    assert done.returncode == 2 and "Traceback" in done.stderr


def test_a_full_disk_costs_the_trace_and_not_the_answer(cli):
    done = cli("solve", QUESTION, "--trace", "/dev/full")
    assert done.returncode == 2 and re.fullmatch(r"[0-4]\n", done.stdout)
    assert "No space left" in done.stderr and "--trace" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_under_stdout():
    with open("/dev/full", "w") as full:
        command, environment = process("solve", QUESTION, "-q")
        done = subprocess.run(
            command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and "No space left" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_closed_pipe_is_quiet():
    command, environment = process("solve", QUESTION, "-q")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_keeps_the_partial_trace(cli, tmp_path):
    trace = tmp_path / "t.jsonl"
    command, environment = process("solve", QUESTION, "--trace", trace, script="slow")
    running = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has its children ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in running.stderr:
        if "SUMMARY 4" in line:  # the first stage is over, the second is being written
            break
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert "Interrupted." in err and str(trace) in err and "Traceback" not in err
    kept = Trace.read(trace)
    assert isinstance(kept.events[0], Started) and isinstance(kept.events[-1], Failed)
    assert kept.finished is None and len(kept.chains()) > 1
    drawn = cli("trace", trace, "--json")
    assert json.loads(drawn.stdout)["answer"] is None and drawn.returncode == 0


def test_ctrl_c_while_loading(monkeypatch, capsys):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("cot_engine.engine.facade.Engine.from_pretrained", interrupted)
    assert main(["solve", QUESTION]) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("Interrupted.\n")


# --- trace and list ------------------------------------------------------------------------------


@pytest.fixture
def recorded(cli, tmp_path, picture):
    path = tmp_path / "t.jsonl"
    assert cli("solve", picture, QUESTION, "--trace", path).returncode == 0
    return path


def test_trace_draws_a_tree(cli, recorded):
    done = cli("trace", recorded)
    assert done.returncode == 0, done.stderr
    assert "SUMMARY" in done.stdout and "CONCLUSION" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_trace_writes_a_page(cli, recorded, tmp_path):
    page = tmp_path / "deep" / "page.html"
    done = cli("trace", recorded, "--html", page)
    assert (done.returncode, done.stdout) == (0, "")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert cli("trace", recorded, "--html", "-").stdout == page.read_text("utf-8")
    two_lines(cli("trace", recorded, "--html", tmp_path))
    two_lines(cli("trace", recorded, "--html", "-", "--json"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_costs_the_page_and_not_what_the_judge_said(cli, recorded):
    done = cli("trace", recorded, "--judge", "random", "--html", "/dev/full")
    assert done.returncode == 2 and "No space left" in done.stderr
    assert "selections kept" in done.stderr and "The answer is" in done.stderr


def test_trace_summary(cli, recorded):
    result = json.loads(cli("trace", recorded, "--json").stdout)
    assert result["question"] == QUESTION and result["answer"] == result["stages"][-1]["text"]
    finished = Trace.read(recorded).finished
    assert isinstance(finished, Finished) and result["seconds"] == finished.seconds


@pytest.mark.parametrize(("judge", "loads"), [("random", False), ("self", True)])
def test_trace_is_judged_again(cli, recorded, tmp_path, judge, loads):
    seen = tmp_path / "loaded"
    flags = ["--judge", judge, "--tournament", "swiss"]
    # The model that the trace names is the user's: see test_trace_model.
    done = cli("trace", recorded, *flags, "--json", "-q", SEEN=seen, COT_ENGINE_MODEL="scripted")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)["rejudged"]
    assert (again["judge"], again["tournament"]) == (judge, "swiss")
    assert len(again["selections"]) == 4
    assert seen.exists() is loads, "a model is loaded for a judge that asks one, and for no other"
    done = cli("trace", recorded, *flags)
    assert f"judge {judge}" in done.stdout and "of 4 selections" in done.stderr


def test_trace_is_not_judged_by_an_unknown_judge(cli, recorded):
    assert "Did you mean random" in two_lines(cli("trace", recorded, "--judge", "randm"))


@pytest.mark.parametrize("kind", ["strategies", "judges", "tournaments", "models", "stages"])
def test_lists(cli, kind):
    done = cli("list", kind)
    rows = json.loads(cli("list", kind, "--json").stdout)
    expected = {
        "strategies": {"greedy", "stage-beam", "best-of-n", "sentence-beam", "majority"},
        "judges": {"self", "likelihood", "random"},
        "tournaments": {"random-pairs", "knockout", "round-robin", "swiss"},
        "models": {"bundled"},
        "stages": {"SUMMARY", "CAPTION", "REASONING", "CONCLUSION"},
    }[kind]
    assert expected <= {row["name"] for row in rows}
    assert all(row["about"].strip() for row in rows)
    assert all(row["name"] in done.stdout for row in rows) and done.returncode == 0


def test_the_stages_of_another_plan(cli, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text('[[stage]]\ntag = "ANSWER"\npurpose = "Say it."\nquestion = "Which?"\n')
    rows = json.loads(cli("list", "stages", "--plan", plan, "--json").stdout)
    assert [row["name"] for row in rows] == ["ANSWER"]
    result = json.loads(cli("solve", QUESTION, "--plan", plan, "--json").stdout)
    assert [stage["stage"] for stage in result["stages"]] == ["ANSWER"]
