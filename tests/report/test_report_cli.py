"""`cot-engine report`, as its users meet it."""

import csv
import io
import json
import sys

import pytest
from golden import check_golden
from make_store import make_store

from cot_engine.cli import main
from cot_engine.core.trace import Trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("made")
    make_store(path / "main.sqlite", problems=6, seeds=(0, 1), traces=3)[0].close()
    return path


@pytest.fixture
def cli(folder, monkeypatch, capfd):
    """cli(*arguments) -> (exit code, stdout, stderr), where main.sqlite is."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return (code, *capfd.readouterr())

    return call


def two_lines(done):
    """A failure in two lines, what and what next, with nothing on stdout."""
    code, out, err = done
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 2, err
    return err


# --- formats -------------------------------------------------------------------------------------


def test_markdown_goes_to_stdout(cli):
    code, out, err = cli("report", "main.sqlite")
    assert (code, err) == (0, "")
    check_golden("report/report.md", out)
    assert cli("report", "main.sqlite", "--format", "md", "--out", "-") == (0, out, "")


def test_json_in_both_ways(cli):
    _, out, _ = cli("report", "main.sqlite", "--json")
    told = json.loads(out)
    assert told["searches"] == 105
    assert told["cards"]
    assert cli("report", "main.sqlite", "--format", "json") == (0, out, "")
    assert "exclude each other" in two_lines(
        cli("report", "main.sqlite", "--json", "--format", "md")
    )


def test_csv_is_one_search_a_line(cli):
    _, out, _ = cli("report", "main.sqlite", "--format", "csv", "--where", "label = 'greedy'")
    assert len(list(csv.DictReader(io.StringIO(out)))) == 12


def test_csv_on_a_terminal_is_harmless_and_in_a_file_exact(cli, folder, tmp_path, monkeypatch):
    from cot_engine.cli import report

    shown = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "write", shown.append)
    report._put("a\x1b[31m", None, document=True)
    assert shown == ["a␛[31m"]
    report._put("a\x1b[31m\n", str(tmp_path / "below" / "x.csv"), document=True)
    assert (tmp_path / "below" / "x.csv").read_bytes() == b"a\x1b[31m\n"


def test_the_name_of_the_file_says_the_format(cli, folder):
    for name in ("r.md", "r.json", "r.csv", "sub/r.txt"):
        assert cli("report", "main.sqlite", "--out", name) == (0, "", "")
    assert (folder / "r.md").read_text().startswith("# Ablation main\n")
    assert json.loads((folder / "r.json").read_text())["schema"] == 1
    assert (folder / "r.csv").read_text().startswith("label,problem,type,")
    assert (folder / "sub" / "r.txt").read_text() == (folder / "r.md").read_text()


def test_html_is_one_page(cli, folder):
    assert cli("report", "main.sqlite", "--out", "r.html", "--traces", "1") == (0, "", "")
    small = (folder / "r.html").read_text()
    assert small.startswith("<!doctype html>") or small.startswith("<!DOCTYPE html>")
    assert "<script>alert" not in small
    code, out, err = cli("report", "main.sqlite", "--format", "html")
    assert (code, err) == (0, "")
    assert len(out) > len(small)


def test_inspect_logs_are_a_folder(cli, folder):
    pytest.importorskip("inspect_ai")
    code, out, _ = cli("report", "main.sqlite", "--format", "inspect", "--out", "logs")
    assert code == 0
    assert len(out.splitlines()) == 9
    assert all((folder / line).is_file() for line in out.splitlines())
    said = two_lines(cli("report", "main.sqlite", "--format", "inspect", "--out", "-"))
    assert "Name a folder" in said


def test_what_is_not_installed_is_named_with_its_extra(cli, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "inspect_ai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    said = two_lines(cli("report", "main.sqlite", "--format", "inspect", "--out", "never"))
    assert "pip install '.[inspect]'" in said and "pip install 'cot-engine" not in said


# --- runs and searches ---------------------------------------------------------------------------


def test_runs_are_listed(cli):
    code, out, _ = cli("report", "main.sqlite", "--runs")
    assert code == 0
    assert out == (
        "0123456789ab  2025-01-01T00:00:00Z  105 of 108 searches"
        "  cot-engine ablate main.toml --store main.sqlite\n"
    )
    assert cli("report", "main.sqlite", "--run", "0123")[0] == 0
    assert "no run 'x'" in two_lines(cli("report", "main.sqlite", "--run", "x"))


def test_a_search_can_be_taken_out_and_drawn(cli, folder, monkeypatch):
    name = "p002/stage-beam n=4/1"
    assert cli("report", "main.sqlite", "--trace", name, "--out", "x.jsonl") == (0, "", "")
    trace = Trace.read(folder / "x.jsonl")
    assert (trace.started.problem, trace.started.seed) == ("p002", 1)
    assert trace.started.strategy == "stage-beam"
    code, drawn, _ = cli("trace", "x.jsonl")
    assert code == 0
    assert "┬ SUMMARY" in drawn
    _, out, _ = cli("report", "main.sqlite", "--trace", name)
    assert out == (folder / "x.jsonl").read_text()
    with (folder / "x.jsonl").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert cli("trace", "-") == (0, drawn, "")


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("p002/stage-beam n4/1", "Did you mean p000/stage-beam n=4/0"),
        ("p002/greedy/7", "There is no search"),
        ("p999/greedy/0", "There is no search"),
        ("greedy", "There is no search"),
        ("p005/greedy/0", "has no trace of"),
    ],
)
def test_a_search_that_is_not_there(cli, search, said):
    assert said in two_lines(cli("report", "main.sqlite", "--trace", search))


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope.sqlite"], "There is no store 'nope.sqlite'"),
        (["main.sqlite", "--format", "htm"], "Did you mean html?"),
        (["main.sqlite", "--where", "nope = 1"], "no such column: nope"),
        (["main.sqlite", "--format", "csv", "--where", "nope = 1"], "no such column: nope"),
        (["main.sqlite", "--out", "main.sqlite/r.md"], "cannot be written"),
        (["main.sqlite", "--traces", "-1"], "--traces"),
        ([], "Missing argument"),
    ],
)
def test_what_is_wrong_is_said_in_two_lines(cli, arguments, said):
    assert said in two_lines(cli("report", *arguments))
