"""What terminals and pipes are given, whatever their encoding, and what comes in by stdin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import scripted_cli
from make_store import make_store

from cot_engine.cli import main, process
from cot_engine.errors import InputError, cut, install

HERE = Path(__file__).parents[1]
QUESTION = "Ist das größer als 日本?"
ALL = """
import sys
import scripted_cli
from cot_engine.cli import main
from cot_engine.engine.facade import Engine
Engine.from_pretrained = scripted_cli.load
for arguments in {!r}:
    code = main(arguments)
    print("ended with", code, flush=True)
"""


def run(*arguments, input=None, python=(str(HERE / "scripted_cli.py"),), **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COT_ENGINE_", "PYTHON"))}
    kept |= {"COLUMNS": "80", "PYTHONPATH": str(HERE), **environment}
    command = [sys.executable, *python, *map(str, arguments)]
    return subprocess.run(command, env=kept, input=input, capture_output=True, timeout=300)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "straße.png"
    PIL.Image.new("RGB", (32, 16), "red").save(path)
    return path


# --- encodings -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """(arguments, exit code) of each command, as far as it gets on the scripted model."""
    folder = tmp_path_factory.mktemp("terminal")
    picture = folder / "straße.png"
    PIL.Image.new("RGB", (32, 16), "red").save(picture)
    make_store(folder / "s.sqlite", problems=3, seeds=(0,), traces=1)[0].close()
    (folder / "rows.jsonl").write_text('{"id": "ü1", "question": "größer?", "response": "日本"}\n')
    trace, store = str(folder / "t.jsonl"), str(folder / "s.sqlite")
    kinds = ("strategies", "judges", "tournaments", "models", "stages")
    return [
        (["solve", str(picture), QUESTION, "--trace", trace], 0),
        (["trace", trace], 0),
        (["trace", trace, "--judge", "likelihood"], 0),
        (["trace", trace, "--json"], 0),
        *((["list", kind], 0) for kind in kinds),
        (["report", store], 0),
        (["report", store, "--runs"], 0),
        (["report", store, "--where", "größe = 1"], 2),
        (["data", "check", str(folder / "rows.jsonl")], 3),
        (["solve", "größe.png", QUESTION], 2),
        (["solve", str(picture), QUESTION, "--judge", "日本"], 2),
        (["ablate", "größe.toml"], 2),
        (["train", "größe.toml"], 2),
        (["train-judge", "größe.toml"], 2),
        (["judge-report", "--data", "größe.jsonl"], 2),
        (
            ["data", "build", "größe.jsonl", "--base-url", "http://127.0.0.1:9/v1", "--model", "m"],
            2,
        ),
    ]


@pytest.mark.parametrize(
    ("environment", "encoding"),
    [
        ({"LC_ALL": "C"}, "ascii"),
        ({"PYTHONIOENCODING": "ascii"}, "us-ascii"),
        ({"PYTHONIOENCODING": "cp1252"}, "cp1252"),
        ({"PYTHONIOENCODING": "latin-1:strict"}, "latin-1"),
    ],
)
def test_every_command_writes_what_the_terminal_can_show(commands, environment, encoding):
    if encoding != "ascii":  # one of each kind will do
        commands = commands[:2]
    code = ALL.format([arguments for arguments, _ in commands])
    done = run(python=("-c", code), SCRIPT="hostile", **environment)
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0 and "Traceback" not in err and "defect" not in err, err
    ended = [line for line in out.splitlines() if line.startswith("ended with")]
    assert ended == [f"ended with {code}" for _, code in commands], err
    lines = {"─": "\\u2500", "│": "\\u2502", "·": "\\xb7", "…": "\\u2026", "−": "\\u2212"}
    assert not [name for name, code in lines.items() if code in out + err], "drawn, not spelled"
    if "ascii" in encoding:
        assert "gr\\xf6\\xdfer als \\u65e5\\u672c?" in err, "what a user wrote, by its codes"


def test_a_page_is_utf8_whatever_the_locale(commands, tmp_path):
    solve, *_ = commands
    run(*solve[0], LC_ALL="C")
    done = run("trace", solve[0][-1], "--html", "-", LC_ALL="C")
    assert done.returncode == 0 and "größer als 日本?" in done.stdout.decode("utf-8")


def test_streams_that_are_closed_are_no_defect():
    code = "import sys; sys.stdout = None; from cot_engine.cli import main; "
    done = run(python=("-c", code + "sys.exit(main(['list', 'judges']))"))
    assert (done.returncode, done.stderr) == (0, b"")
    code = code.replace("stdout", "stderr")
    assert run(python=("-c", code + "sys.exit(main(['list', 'x']))")).returncode == 2


def test_utf8_stays_as_it_is(picture):
    done = run("solve", picture, QUESTION, LC_ALL="C", PYTHONUTF8="1")
    assert "größer als 日本?" in done.stderr.decode() and " · " in done.stderr.decode()


def test_everything_our_own_lines_are_drawn_with_has_a_likeness():
    assert process.plain("┬ ├─│ ╰ ╳ ● ▸ ⠹ … × − – · ␛[31m⟨U+202E⟩ é") == (
        r"+ +-| + x * > \ ... x - - . ^[[31m<U+202E> \xe9"
    ).replace(r"\ ...", process.plain("⠹") + " ...")


# --- quiet ---------------------------------------------------------------------------------------


def test_quiet_is_quiet_about_a_picture_that_pillow_warns_of(tmp_path):
    path = tmp_path / "a.jpg"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01"  # cut off within its first entry
    PIL.Image.new("RGB", (32, 16), "red").save(path, exif=exif)
    done = run("solve", path, "How many?", "-q")
    assert done.returncode == 0 and done.stderr == b""
    loud = run("solve", path, "How many?", "--verbose")
    assert b"EXIF" in loud.stderr, "the picture must be one that Pillow warns of"


def test_quiet_says_errors_all_the_same():
    assert b"is not there" not in (done := run("solve", "nope.png", "How many?", "-q")).stdout
    assert done.returncode == 2 and b"does not exist" in done.stderr


# --- what the bundled model knows ----------------------------------------------------------------


def scripted(monkeypatch, capfd, *arguments):
    monkeypatch.setattr("cot_engine.engine.facade.Engine.from_pretrained", scripted_cli.load)
    monkeypatch.setattr("cot_engine.cli.process.silence_libraries", lambda: None)
    code = main([str(argument) for argument in arguments])
    return code, *capfd.readouterr()


def test_the_bundled_model_is_said_to_know_its_world_only(monkeypatch, capfd, picture):
    known = "knows only drawn shapes and bar charts; see --model"
    _, out, err = scripted(monkeypatch, capfd, "solve", picture, "What animal is this?")
    assert err.count(known) == 1 and known not in out
    _, out, err = scripted(monkeypatch, capfd, "solve", picture, QUESTION, "--json")
    assert err.count(known) == 1 and known not in out
    for more in (["-q"], ["--model", "bundled"]):
        _, _, err = scripted(monkeypatch, capfd, "solve", picture, QUESTION, *more)
        assert known not in err
    monkeypatch.setenv("COT_ENGINE_MODEL", "bundled")
    assert known not in scripted(monkeypatch, capfd, "solve", picture, QUESTION)[2]


# --- stdin ---------------------------------------------------------------------------------------


def test_a_picture_comes_from_stdin(picture):
    done = run("solve", "-", "How many?", input=picture.read_bytes())
    named = run("solve", picture, "How many?")
    assert done.returncode == 0, done.stderr
    assert b"[stdin 32 x 16]" in done.stderr
    assert done.stdout.strip() and done.stdout == named.stdout


@pytest.mark.parametrize(
    ("arguments", "input", "said"),
    [
        (["-", "How many?"], b"", "it is empty"),
        (["-", "How many?"], b"\x89PNG\r\n\x1a\n broken", "The image from stdin is damaged"),
        (["-", "How many?"], b"%PDF-1.7", "The image from stdin is a PDF"),
        (["-"], b"", "the question is missing"),
        (["How many?", "-"], b"", "stands where the question belongs"),
        (["-", "How many?", "-i", "-"], b"", "Two pictures are -"),
    ],
)
def test_what_stdin_does_not_hold_is_said(arguments, input, said):
    done = run("solve", *arguments, input=input)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (2, b"", 2), lines
    assert said in lines[0]


def test_stdin_has_a_limit_and_is_no_terminal(monkeypatch, capfd):
    for code, said in (
        ("import cot_engine.cli.solve as s; s.MAX_STDIN = 10;", b"more than 10 bytes"),
        ("import sys; sys.stdin.isatty = lambda: True;", b"which is the terminal"),
        ("import sys; sys.stdin = None;", b"which is closed"),
    ):
        main = f"{code} from cot_engine.cli import main; main(['solve', '-', 'How many?'])"
        assert said in run(python=("-c", main), input=b"0123456789ab").stderr


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["x" * 1_000_000, "ab " * 300_000, "'" * 1000 + "y" * 500_000])
def test_no_error_shows_a_long_value_whole(value):
    error = InputError(f"The question is {value!r}, which is too long.", f"Not {value}.")
    for text in (error.message, error.hint, str(error)):
        assert len(text) <= 5000
    assert error.message.startswith("The question is") and error.message.endswith("too long.")
    assert InputError(error.message).message == error.message, "cut once"


def test_both_ends_of_a_long_value_are_kept():
    assert cut("a" * 100, 100) == "a" * 100
    said = cut("begin" + "a" * 1000 + "end", 100)
    assert len(said) == 100 and said.startswith("begin") and said.endswith("end")
    assert "(1,008 characters)" in said


def test_an_error_obeys_nothing_that_it_shows():
    error = InputError("The folder \x1b[31mred\x07\u202e is missing.")
    assert error.message == "The folder ␛[31mred␇⟨U+202E⟩ is missing."


@pytest.mark.parametrize(
    "arguments",
    [
        ["solve", "{}", "How?"],
        ["solve", "{}.png"],
        ["solve", "{}", "a.png", "c"],
        ["solve", "How?", "--strategy", "{}"],
        ["solve", "How?", "--budget", "{}"],
        ["solve", "How?", "--{}"],
        ["solve", "How?", "-p", "{}"],
        ["{}"],
        ["list", "{}"],
        ["trace", "{}"],
        ["report", "{}"],
        ["ablate", "{}"],
        ["train", "{}"],
    ],
)
def test_no_command_echoes_a_megabyte(monkeypatch, capfd, arguments):
    long = "x" * 1_000_000
    code, out, err = scripted(monkeypatch, capfd, *(each.format(long) for each in arguments))
    assert code == 2 and out == "" and len(err) < 5000, err[:300]
    assert "defect" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["solve", "How?", "--judge", ""], "--judge is empty"),
        (["solve", "How?", "--model", " "], "--model is empty"),
        (["solve", "How?", "--plan", ""], "--plan is empty"),
        (["solve", "How?", "--trace", ""], "--trace is empty"),
        (["solve", "How?", "--image", ""], "--image is empty"),
        (["trace", "t.jsonl", "--judge", ""], "--judge is empty"),
        (["report", "s.sqlite", "--where", ""], "--where is empty"),
        (["report", "s.sqlite", "--out", ""], "--out is empty"),
        (["report", "s.sqlite", "--run", ""], "--run is empty"),
        (["ablate", "grid.toml", "--store", ""], "--store is empty"),
        (["judge-report", "--data", ""], "--data is empty"),
        (["data", "check", "rows.jsonl", "--images", ""], "--images is empty"),
        (["data", "build", "q.jsonl", "--out", ""], "--out is empty"),
        (["train", "c.toml", "--set", ""], "--set is empty"),
        (["list", "judges", "--plan", "p.toml"], "--plan belongs to the stages"),
        (["trace", "docs/example-trace.jsonl", "--model", "m"], "nothing is judged again"),
        (["trace", "docs/example-trace.jsonl", "--html", "a\0b"], "NUL character"),
    ],
)
def test_what_would_mean_nothing_is_refused(monkeypatch, capfd, arguments, said):
    monkeypatch.chdir(HERE.parent)
    code, out, err = scripted(monkeypatch, capfd, *arguments)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 2


def test_a_where_that_no_search_meets_is_refused_and_runs_are_json(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "s.sqlite", problems=1, seeds=(0,))[0].close()
    code, out, err = scripted(monkeypatch, capfd, "report", "s.sqlite", "--where", "seed = 7")
    assert (code, out) == (2, "") and "'seed = 7'" in err
    code, out, _ = scripted(monkeypatch, capfd, "report", "s.sqlite", "--runs", "--json")
    assert code == 0 and json.loads(out)[0]["searches"] > 0


def test_an_extra_is_named_by_what_it_needs():
    said = install("inspect")
    assert "pip install 'inspect-ai>=0.3.69'" in said and "pip install '.[inspect]'" in said
    assert "pip install 'cot-engine" not in said
    assert "'accelerate>=1.0' 'peft>=0.17'" in install("train")


# --- the process ---------------------------------------------------------------------------------


def test_only_a_process_of_its_own_is_settled():
    """Threads that wait sleep, and nothing is searched for garbage at the end."""
    code = """
import atexit, gc, os, sys
atexit.register(lambda: print(gc.get_freeze_count() > 0))
from cot_engine.cli import main
sys.argv = ["cot-engine", "--version"]
main({})
from cot_engine.cli import process
process.small_model()
threads = os.environ.get("OMP_NUM_THREADS")
print(os.environ.get("OMP_WAIT_POLICY"), threads, gc.get_threshold()[0] > 10_000)
"""
    unset = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    ours, others = "passive 1 True\nTrue", "None None False\nFalse"
    for arguments, said in (("", ours), ('["--version"]', others)):
        command = [sys.executable, "-c", code.format(arguments)]
        done = subprocess.run(command, env=unset, capture_output=True, text=True, check=True)
        assert done.stdout.partition("\n")[2].strip() == said
