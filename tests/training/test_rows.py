"""The row format: what is read is written again, and a bad line costs no other."""

import json
import os
import resource
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_engine.errors import InputError
from cot_engine.training import rows as rows_module
from cot_engine.training.rows import (
    BadRow,
    TrainingRow,
    numbered_rows,
    read_rows,
    row_json,
    write_rows,
)

texts = st.text(st.characters(codec="utf-8"), max_size=30)
names = texts.filter(str.strip)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, width=32) | texts
values = st.recursive(
    scalars.filter(lambda x: x not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
others = st.dictionaries(
    texts.filter(lambda key: key not in ("id", "image", "conversations")), values, max_size=3
)
pairs = st.lists(st.tuples(texts, texts), max_size=2).map(tuple)
made = st.builds(
    TrainingRow, names, st.none(), texts, texts, others, st.just(()), pairs
) | st.builds(
    TrainingRow, names, names, texts, texts, others, st.lists(names, max_size=2).map(tuple), pairs
)
turns = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "system"]), "value": texts},
    optional={"weight": scalars.filter(lambda x: x not in (float("inf"), float("-inf")))},
)
questions = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "<image>", "<image>\n", "<image> \n"]),
    texts,
    st.sampled_from(["", "<image>", "\n<image>"]),
)
objects = st.builds(
    lambda id, image, before, question, reply, after, more: {
        "id": id,
        **image,
        "conversations": [
            *before,
            {"from": "human", "value": question},
            {"from": "gpt", "value": reply},
            *after,
        ],
        **more,
    },
    names | st.integers(),
    st.dictionaries(
        st.sampled_from(["image", "images"]), st.none() | names | st.lists(names), max_size=1
    ),
    st.lists(turns, max_size=1),
    questions,
    texts,
    st.lists(turns, max_size=3),
    others,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@given(st.lists(made, max_size=4))
def test_what_was_written_is_read(folder, rows):
    path = folder / "written.jsonl"
    assert write_rows(path, rows) == len(rows)
    assert list(read_rows(path)) == rows


@given(st.lists(objects, max_size=4), st.booleans(), st.sampled_from([1, 7, 2**20]))
def test_what_was_read_is_written(folder, found, array, chunk):
    """Unknown keys, further turns, markers elsewhere, ids that are numbers: all of it, from JSONL
    and from an array, wherever the chunks of that end."""
    path = folder / "read.json"
    text = (
        json.dumps(found, indent=1, ensure_ascii=False)
        if array
        else "\n".join(json.dumps(each) for each in found)
    )
    path.write_bytes(b"\xef\xbb\xbf" * array + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_CHUNK", chunk)
        rows = list(read_rows(path))
    assert [json.loads(row_json(row)) for row in rows] == found
    assert write_rows(path, rows) == len(found)
    assert list(read_rows(path)) == rows


def turn(who="human", value="<image>\nHow many?", **more):
    return {"from": who, "value": value, **more}


REPLY = turn("gpt", "<SUMMARY>...")
SOUND = {"id": "7", "image": "a/7.png", "conversations": [turn(), REPLY]}


def reading(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(numbered_rows(path))


def test_the_fields(tmp_path):
    more = {**SOUND, "source": "x", "conversations": [turn("system", "Be brief."), turn(), REPLY]}
    first, second = reading(tmp_path / "a", json.dumps(SOUND) + "\n\n" + json.dumps(more))
    assert first == (1, TrainingRow("7", "a/7.png", "How many?", "<SUMMARY>...", {}))
    assert second[0] == 3 and second[1].question == "How many?"
    assert second[1].extra == {"source": "x", "conversations": more["conversations"]}


def test_a_new_response_is_written_into_a_kept_conversation(tmp_path):
    found = {**SOUND, "conversations": [turn(value="How?\n<image>"), REPLY, turn(value="And?")]}
    ((_, row),) = reading(tmp_path / "a", json.dumps(found))
    new = TrainingRow(row.id, row.image, "Why?", "So.", row.extra)
    assert json.loads(row_json(new))["conversations"] == [
        turn(value="Why?\n<image>"),
        turn("gpt", "So."),
        turn(value="And?"),
    ]
    assert found["conversations"][1] == REPLY == row.extra["conversations"][1]


def test_half_a_character_in_another_key_is_kept(tmp_path):
    ((_, row),) = reading(tmp_path / "a", json.dumps({**SOUND, "source": "\ud800"}))
    assert json.loads(row_json(row))["source"] == "\ud800"
    write_rows(tmp_path / "b", [row])
    assert list(read_rows(tmp_path / "b")) == [row]


BAD = {
    "not JSON": ('{"id": 1', "is not JSON"),
    "no id": ("{}", "no id"),
    "a list": ("[1]", "this is a list"),
    "a number": ("3", "this is a number"),
    "a text": ('"x"', "this is a text"),
    "NaN": ('{"id": NaN}', "NaN"),
    "endless": ('{"id": 1e999}', "1e999"),
    "too deep": ('{"id": ' + "[" * 200_000, "is not JSON"),
    "a long number": ('{"id": ' + "1" * 5000 + "}", "is not JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "0xff is not UTF-8"),
    "id null": (json.dumps({**SOUND, "id": None}), "id is null"),
    "id true": (json.dumps({**SOUND, "id": True}), "id is true"),
    "id blank": (json.dumps({**SOUND, "id": " "}), "id is an empty text"),
    "an image null": (json.dumps({**SOUND, "image": ["a", None]}), "image holds null"),
    "an image blank": (json.dumps({**SOUND, "image": ["a", ""]}), "image holds an empty text"),
    "a list in a list": (json.dumps({**SOUND, "image": [["a"]]}), "image holds a list"),
    "images 5": (json.dumps({"id": 1, "images": 5}), "images is a number"),
    "image and images": (json.dumps({**SOUND, "images": ["b"]}), "an image and images"),
    "image 5": (json.dumps({**SOUND, "image": 5}), "image is a number"),
    "image blank": (json.dumps({**SOUND, "image": ""}), "image is an empty text"),
    "messages": ('{"id": 1, "messages": []}', "Is 'messages' it?"),
    "conversation": ('{"id": 1, "conversation": []}', "Is 'conversation' it?"),
    "no list": (json.dumps({**SOUND, "conversations": {}}), "conversations is an object"),
    "roles": (
        json.dumps({**SOUND, "conversations": [{"role": "user", "content": "x"}]}),
        "turn 1 lacks a from",
    ),
    "no reply": (json.dumps({**SOUND, "conversations": [turn()]}), "no turn from 'gpt'"),
    "reply first": (
        json.dumps({**SOUND, "conversations": [REPLY, turn()]}),
        "no turn from 'gpt' after the question",
    ),
    "nobody": (json.dumps({**SOUND, "conversations": []}), "Its turns are from nobody"),
    "half a character": (
        json.dumps({**SOUND, "conversations": [turn(), turn("gpt", "\ud83d")]}),
        "half a character",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_told_and_costs_no_other(tmp_path, case):
    line, said = BAD[case]
    sound = json.dumps(SOUND).encode()
    line = line if isinstance(line, bytes) else line.encode()
    before, bad, after = reading(tmp_path / "a", b"\n".join([sound, line, sound]))
    assert isinstance(before[1], TrainingRow) and after == (3, before[1])
    assert isinstance(bad[1], BadRow) and bad[0] == bad[1].line == 2
    assert said in f"{bad[1].said} {bad[1].hint}"
    assert len(bad[1].text) <= 200


def test_a_line_that_is_too_long_is_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "MAX_LINE", 1000)
    monkeypatch.setattr(rows_module, "_CHUNK", 64)
    long = json.dumps({**SOUND, "x": "y" * 5000})
    first, second = reading(tmp_path / "a", f"{long}\n{json.dumps(SOUND)}")
    assert "1,000 bytes" in first[1].said and isinstance(second[1], TrainingRow) and second[0] == 2
    first, second = reading(tmp_path / "a", f"[{json.dumps(SOUND)},\n{long}]")
    assert isinstance(first[1], TrainingRow) and "1,000 bytes" in second[1].said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{}, {}", "cut off"),
        ("[{},", "cut off"),
        ("[", "cut off"),
        ("[{} {}]", "no comma"),
        ("[{}, {]", "is not JSON"),
        ("[{}, NaN]", "NaN"),
        ("[{}] x", "more after"),
        ('[{}, "\ud83d"]', "is not UTF-8"),
    ],
)
def test_what_ends_an_array(tmp_path, text, said):
    found = reading(
        tmp_path / "a", text.replace("{}", json.dumps(SOUND)).encode("utf-8", "surrogatepass")
    )
    assert all(isinstance(row, TrainingRow) for _, row in found[:-1])
    assert said in found[-1][1].said


def test_an_array_knows_its_lines(tmp_path):
    found = reading(tmp_path / "a", " \n" + json.dumps([SOUND, 5, SOUND], indent=2))
    size = json.dumps(SOUND, indent=2).count("\n") + 1
    assert [line for line, _ in found] == [3, 3 + size, 4 + size]
    assert [type(row) for _, row in found] == [TrainingRow, BadRow, TrainingRow]


def test_files_that_are_none(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    assert list(read_rows(tmp_path / "rows.jsonl")) == []
    with pytest.raises(InputError, match=r"is a folder.*rows\.jsonl"):
        list(read_rows(tmp_path))
    with pytest.raises(InputError, match="No such file"):
        list(read_rows(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_rows("a\0b"))
    with pytest.raises(InputError, match="not a text file"):
        reading(tmp_path / "a", json.dumps(SOUND).encode("utf-16"))


# --- writing -------------------------------------------------------------------------------------

ROW = TrainingRow("1", None, "How?", "So.")


def test_writing_takes_the_files_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    write_rows(path, [ROW])
    before = path.read_bytes()

    def broken():
        yield TrainingRow("2", None, "", "")
        assert path.read_bytes() == before, "not there before all are written"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_rows(path, broken())
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["rows.jsonl"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "rows")
    write_rows(tmp_path / "link", [ROW])
    assert (tmp_path / "link").is_symlink() and list(read_rows(tmp_path / "far" / "rows")) == [ROW]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a folder"):
        write_rows(tmp_path, [ROW])
    with pytest.raises(InputError, match="cannot be written"):
        write_rows(tmp_path / "file" / "rows", [ROW])


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """The kernel's limit on a file's size stands for the disk: writing fails part of the way."""
    path = tmp_path / "rows"
    write_rows(path, [ROW])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(InputError, match="cannot be written: File too large"):
            write_rows(path, [ROW] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(read_rows(path)) == [ROW] and os.listdir(tmp_path) == ["rows"]
