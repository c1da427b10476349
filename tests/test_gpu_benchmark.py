"""The benchmark for a GPU, on a CPU: everything is called, and the numbers mean nothing."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


def ran(gpu, path, *parts):
    status = gpu.main(["--tiny", "--device", "cpu", "--json", str(path), "--part", *parts])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["error"] for row in rows] == [""] * len(rows)
    assert status == 0
    return {(row["part"], row["what"]): row for row in rows}


def test_a_step_is_held_against_the_graph_alone(gpu, tmp_path, capsys):
    rows = ran(gpu, tmp_path / "rows.jsonl", "bandwidth", "llava")
    step, alone = (rows["llava", f"{what}"] for what in (
        "engine step, 4 rows, 4 a prompt", "graph alone, 4 rows x 96"))  # fmt: skip
    ratio = rows["llava", "engine / graph, 4 rows"]
    assert ratio["value"] == pytest.approx(step["value"] / alone["value"])
    assert (ratio["bar"], ratio["met"]) == (1.25, ratio["value"] <= 1.25)
    assert 0 < step["bandwidth"] < 1 and step["torch"] and step["commit"]
    assert "engine / graph, 4 rows" in capsys.readouterr().out


@pytest.mark.slow
def test_all_bars_are_measured(gpu, tmp_path):
    rows = ran(gpu, tmp_path / "rows.jsonl", *gpu.PARTS)
    assert {part for part, _ in rows} == set(gpu.PARTS)
    barred = {part for (part, _), row in rows.items() if row["bar"] is not None}
    assert barred == {"llava", "qwen", "sharing", "crowd", "drawing", "published"}
    assert rows["crowd", "4 in flight, N=4: answered"]["met"]


def test_a_part_that_fails_or_takes_too_long_lets_the_next_begin(gpu, tmp_path, monkeypatch):
    def breaks(plan):
        yield gpu.Row("bandwidth", "first", 1.0, "s")
        raise ValueError("this\nwas it")

    def hangs(plan):
        while True:
            pass
        yield

    from gpu_parts import Part

    some = {
        "breaks": Part(breaks, 5),
        "hangs": Part(hangs, 0.2),
        "bandwidth": gpu.PARTS["bandwidth"],
    }
    monkeypatch.setattr(gpu, "PARTS", some)
    path = tmp_path / "rows.jsonl"
    assert gpu.main(["--tiny", "--device", "cpu", "--json", str(path)]) == 1
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["error"] for row in rows] == [
        "", "ValueError: this was it", "out of time: more than 1 s", ""]  # fmt: skip
    assert rows[-1]["value"] > 0


def test_a_gpu_is_asked_for_where_there_is_none(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "--tiny" in capsys.readouterr().err


# --- the peer ------------------------------------------------------------------------------------


def test_the_peer_gets_names_that_it_knows_and_the_same_numbers(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import vllm_server
    from safetensors.torch import load_file

    from cot_engine.engine.facade import model_path

    source = Path(model_path("bundled"))
    target = vllm_server.converted(source, tmp_path / "copy")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (source, target))
    again = vllm_server.converted(target, tmp_path / "again")  # nothing is renamed twice
    assert set(load_file(again / "model.safetensors")) == set(theirs)
    assert len(theirs) == len(ours)
    for name, value in ours.items():
        assert theirs[vllm_server.renamed(name)].equal(value)
    towers = [name for name in theirs if name.startswith("vision_tower.")]
    assert towers and all(name.startswith("vision_tower.vision_model.") for name in towers)
    assert (target / "chat_template.jinja").exists()


def test_a_server_that_ends_says_why_and_keeps_its_log(monkeypatch, tmp_path, capfd):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import vllm_server

    from cot_engine.engine.facade import model_path

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys._base_executable)  # it has no vLLM
    (tmp_path / vllm_server.READY).touch()
    monkeypatch.setattr(vllm_server.tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(vllm_server.ServerError, match=r"The server ended with 1:[^$]*vllm"),
        vllm_server.serving(Path(model_path("bundled")), tmp_path),
    ):
        pass
    kept = Path(capfd.readouterr().err.split("kept at ")[1].strip().removesuffix("."))
    assert "vllm" in kept.read_text() and tmp_path in kept.parents


@pytest.mark.parametrize("flag", ["--problems", "--in-flight", "--n"])
def test_the_peer_refuses_nothing_to_do(monkeypatch, capsys, flag):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peer

    args = peer.parsed(["--in-flight", "8", "--venv", "somewhere"])
    assert (args.problems, args.in_flight, args.venv) == (64, 8, Path("somewhere"))
    with pytest.raises(SystemExit):
        peer.parsed([flag, "0"])
    assert f"{flag} must be at least 1" in capsys.readouterr().err
