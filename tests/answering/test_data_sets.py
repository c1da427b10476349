"""What else cot-engine answer reads: benchmarks as they are given out, Hugging Face's folders, the
bundled scenes; and what score makes of its predictions."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from pathlib import Path

import PIL.Image
import pytest

from cot_engine.answering.data import read_data
from cot_engine.answering.hub import read_data_set
from cot_engine.errors import InputError
from cot_engine.questions.row import QuestionRow

GOLD = Path(__file__).parents[3] / "shared" / "gold" / "items"


def png(colour="red"):
    file = io.BytesIO()
    PIL.Image.new("RGB", (12, 8), colour).save(file, "PNG")
    return file.getvalue()


# --- benchmarks ----------------------------------------------------------------------------------


def benchmark(path, **more):
    """A benchmark's TSV of four questions, of which some share a picture and some are no good."""
    red, rows = b64encode(png()).decode(), []
    rows.append(["0", "Which?", "one", "two", "B", "c1", red])
    rows.append(["1", "And?", "one", "two", "A", "c2", "0"])
    rows.append(["2", "Broken?", "one", "two", "A", "c2", red[:80] + "!" + red[81:]])
    rows.append(["3", "Gone?", "one", "two", "A", "c2", "77"])
    rows.append(["1", "Twice?", "one", "two", "A", "c2", red])
    rows.append(["5", "No option?", "one", "two", "X", "c2", red])
    header = ["index", "question", "A", "B", "answer", "category", "image"]
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))
    return path


def test_a_benchmark_is_read_by_its_own_reader_and_scored_by_its_rules(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = benchmark(tmp_path / "MMStar.tsv")
    done = cli("answer", data, "--out", "p.tsv")
    assert done.returncode == 3
    assert done.stdout.startswith("2 of 6 questions are answered in p.tsv, 4 failed")
    assert "multiple choice by the one option letter" in done.stdout
    for words in (
        ["line 4, column image", "base64"],
        ["line 5, column image", "'77'"],
        ["line 6, column index", "'1'"],
        ["line 7, column answer", "'X'"],
    ):
        assert any(all(w in line for w in words) for line in done.stderr.splitlines()), words
    first, shared = [entry.make() for entry in read_data(data).entries[:2]]
    assert first.pictures[0].digest == shared.pictures[0].digest
    assert first.problem().images[0].size == (12, 8)

    (tmp_path / "long.tsv").write_text(f"index\tquestion\timage\n0\t{'x' * 30_000}\t\n")
    done = cli("answer", "long.tsv", SEEN=tmp_path / "loaded")
    assert done.returncode == 3 and "the limit is 20,000" in done.stderr
    assert not (tmp_path / "loaded").exists()  # for a question that cannot be asked

    scored = cli("score", "MMStar", "p.tsv", "--against", data, "--rules", "conclusion", "--json")
    found = json.loads(scored.stdout)
    assert (found["predictions"], found["unresolved"]) == (5, ["0", "1"])


# --- Hugging Face's folders ----------------------------------------------------------------------


def table():
    import pyarrow

    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {
        "pid": ["a", "b", "c"],
        "query": ["What colour?", "Which?", ""],
        "label": [["red", "crimson"], None, ["x"]],
        "options": [None, ["red", "blue"], None],
        "decoded_image": [{"bytes": data, "path": None} for data in (png(), png("blue"), None)],
        "image": ["images/1.png", "images/2.png", None],
    }
    kinds = {"decoded_image": picture}
    return pyarrow.table({k: pyarrow.array(v, kinds.get(k)) for k, v in columns.items()})


def saved(folder, table):
    """As datasets.save_to_disk writes it."""
    import pyarrow

    folder.mkdir(parents=True)
    with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as file:
        file.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_data_sets_of_hugging_face(tmp_path):
    from pyarrow import parquet

    saved(tmp_path / "one", table())
    saved(tmp_path / "many" / "val", table())
    saved(tmp_path / "many" / "test", table().slice(0, 1))
    (tmp_path / "many" / "dataset_dict.json").write_text('{"splits": ["val", "test"]}')
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for k, rows in enumerate((table().slice(0, 2), table().slice(2, 1))):  # shards
        name = f"test-{k:05}-of-00002.parquet"
        parquet.write_table(rows, tmp_path / "hub" / "data" / name, row_group_size=1)
    wanted = None
    for folder, split in (("one", None), ("many", "val"), ("hub", None)):
        data = read_data(tmp_path / folder, split=split)
        assert [entry.place for entry in data.entries] == ["row 1", "row 2", "row 3"]
        items = [entry.make() for entry in data.entries[:2]]
        assert [item.id for item in items] == ["a", "b"]
        assert [item.problem().images[0].size for item in items] == [(12, 8)] * 2
        assert items[0].grade("Crimson") == 1 and not items[1].known
        assert "B. blue" in items[1].question
        with pytest.raises(InputError, match=r"row 3.*no question"):
            data.entries[2].make()
        found = [item.digest for item in items]
        assert wanted in (None, found)
        wanted = found
    with pytest.raises(InputError, match=r"several splits: test, val.*--split"):
        read_data(tmp_path / "many")
    with pytest.raises(InputError, match=r"called 'tset'.*test"):
        read_data(tmp_path / "many", split="tset")
    (tmp_path / "hub" / "data" / "test-00000-of-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        read_data(tmp_path / "hub")


def test_a_damaged_data_set_is_an_error_and_no_crash(tmp_path):
    """Where offsets of an Arrow file point anywhere, reading a text there ends the process."""
    from pyarrow import parquet

    saved(tmp_path / "one", table())
    (tmp_path / "two").mkdir()
    parquet.write_table(table(), tmp_path / "two" / "a.parquet")
    for folder, name in (("one", "data-00000-of-00001.arrow"), ("two", "a.parquet")):
        path, mark = tmp_path / folder / name, b"What colour?"
        data = bytearray(path.read_bytes())
        at = data.index(mark) if folder == "one" else 48
        for k in range(at - 32, at):  # offsets of the texts; of Parquet the header of a page
            data[k] ^= 0x5A
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"cannot be read: .*[^.]\."):
            read_data(tmp_path / folder)


def test_without_pyarrow_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pyarrow.*pip install"):
        read_data_set(tmp_path, None)


# --- on the bundled model ------------------------------------------------------------------------


def test_the_bundled_model_answers_scenes(tmp_path, monkeypatch, capsys):
    from cot_engine.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["answer", "scenes", "--limit", "4", "-s", "greedy", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answered"] == 4 and found["score"]["right"] >= 2
    assert "scenes by whether" in found["rule"] and found["flops"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("MMVet_30", 30), ("MMBench_samples_20", 20)])
def test_real_questions_end_to_end(tmp_path, monkeypatch, capsys, name, count):
    from cot_engine.cli import main

    if not GOLD.is_dir():
        pytest.skip(f"{GOLD} is not there")
    monkeypatch.chdir(tmp_path)
    data = str(GOLD / f"{name}.tsv")
    assert all(isinstance(entry.row, QuestionRow) for entry in read_data(data).entries)
    assert main(["answer", data, "-s", "greedy", "--in-flight", "8", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["answered"], found["failed"]) == (count, [])
    lines = Path(f"{name}.predictions.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == count
    against = {"MMVet_30": "MMVet", "MMBench_samples_20": "MMBench_DEV_EN"}[name]
    out = f"{name}.predictions.jsonl"
    assert main(["score", against, out, "--against", data, "--json", "-q"]) in (0, 3)
    scored = json.loads(capsys.readouterr().out)
    assert scored["faults"] == [] if "faults" in scored else True
