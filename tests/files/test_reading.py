"""Every file that a user can name, every way in which it can be none: exit code 2, a sentence."""

from __future__ import annotations

import json
import os

import pytest

from cot_engine.cli import main
from cot_engine.errors import ConfigError, InputError
from cot_engine.files.reading import (
    MAX_TOML,
    named,
    parse_json,
    parse_toml,
    read_bytes,
    read_extended,
    read_toml,
)

TEACHER = ["--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--retries", "0", "-q"]
TOML = {  # the readers of TOML, by command
    "solve -c": ["solve", "-c", "{}", "How many?"],
    "solve --plan": ["solve", "--plan", "{}", "How many?"],
    "list --plan": ["list", "stages", "--plan", "{}"],
    "data check --plan": ["data", "check", "x.jsonl", "--plan", "{}"],
    "ablate": ["ablate", "{}"],
    "judge-report -c": ["judge-report", "-c", "{}"],
    "train": ["train", "{}"],
    "train-judge": ["train-judge", "{}"],
}
JSON = {
    "trace": ["trace", "{}"],
    "judge-report --data": ["judge-report", "--data", "{}"],
    "data check": ["data", "check", "{}"],
    "data build": ["data", "build", "{}", *TEACHER],
    "data build llava": ["data", "build", "{}", "--teacher", "llava", *TEACHER],
}
OTHER = {
    "solve": ["solve", "{}", "How many?"],
    "solve --image": ["solve", "-i", "{}", "How many?"],
    "report": ["report", "{}"],
}
DIGITS = b"1" * 5000
BAD_TOML = {
    "arrays": b"a = " + b"[" * 5000 + b"]" * 5000,
    "tables": b"a = " + b"{b = " * 5000 + b"1" + b"}" * 5000,
    "keys": b".".join([b"a"] * 5000) + b" = 1",
    "digits": b"seed = " + DIGITS,
    "hex": b"seed = 0x" + DIGITS,
    "latin": b"a = '\xe9'",
    "nul": b"a = 1\0",
    "binary": bytes(range(256)),
}
BAD_JSON = {
    "arrays": b"[" * 5000 + b"]" * 5000,
    "objects": b'{"a": ' * 5000 + b"1" + b"}" * 5000,
    "digits": b'{"event": "notice", "id": ' + DIGITS + b"}",
    "nan": b'{"event": "notice", "text": NaN}',
    "latin": b'{"event": "notice", "text": "\xe9"}',
    "nul": b'{"event": "notice", "text": "a"}\0',
    "binary": bytes(range(256)),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs a command that must end with exit code 2 (3, where rows of data were set aside)."""
    monkeypatch.chdir(tmp_path)

    def run(arguments, path, codes=(2,)):
        code = main([argument.replace("{}", str(path)) for argument in arguments])
        said = capfd.readouterr().err
        assert code in codes, said
        assert "defect" not in said and "Traceback" not in said
        assert said.strip() and len(said) < 1200 and len(said.splitlines()) <= 2, said[:2000]

    return run


@pytest.mark.parametrize("command", TOML)
def test_toml_that_is_none(command, refused, tmp_path):
    for name, data in BAD_TOML.items():
        (tmp_path / f"{name}.toml").write_bytes(data)
        refused(TOML[command], tmp_path / f"{name}.toml")


@pytest.mark.parametrize("command", JSON)
def test_json_that_is_none(command, refused, tmp_path):
    for name, data in BAD_JSON.items():
        (tmp_path / f"{name}.jsonl").write_bytes(data + b"\n")
        codes = (0, 2, 3) if command.startswith("data") else (2,)
        if codes == (2,):
            refused(JSON[command], tmp_path / f"{name}.jsonl")
        else:  # a row that is none is a finding, not an end
            assert main([x.replace("{}", f"{name}.jsonl") for x in JSON[command]]) in codes


@pytest.mark.parametrize("command", [*TOML, *JSON, *OTHER])
def test_a_name_that_is_no_file(command, refused, tmp_path):
    arguments = {**TOML, **JSON, **OTHER}[command]
    suffix = ".toml" if command in TOML else ".png" if "solve" in command else ".jsonl"
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "loop", "zero", "x" * 300):
        refused(arguments, f"{name}{suffix}")
    refused(arguments, "a\0b" + suffix)


def test_a_profile_that_is_none(refused, tmp_path):
    (tmp_path / "model").mkdir()
    for data in BAD_JSON.values():
        (tmp_path / "model" / "cot_engine.json").write_bytes(data)
        refused(["solve", "-m", "{}", "How many?"], tmp_path / "model")
    for name in ("x" * 300, "~nobody-of-that-name/model", "a\0b"):
        refused(["solve", "-m", "{}", "-q", "How many?"], name)


def test_numbers_and_depth_have_limits_that_are_named(tmp_path):
    assert parse_json("1" * 300) == int("1" * 300)
    assert parse_json("[" * 90 + "]" * 90) and parse_toml("a = " + "[" * 90 + "]" * 90)
    for text, words in (
        ("1" * 301, "301 digits; the limit is 300"),
        ("[" * 102 + "]" * 102, "100"),
    ):
        with pytest.raises(ValueError, match=words):
            parse_json(text)
    for text in ("1e400", "-Infinity", "NaN", '{"a": 1e999}'):
        with pytest.raises(ValueError, match="no number of JSON"):
            parse_json(text)
    assert parse_toml("a = 9223372036854775807") == {"a": 2**63 - 1}
    with pytest.raises(ValueError, match="64 bits"):
        parse_toml("a = [9223372036854775808]")
    (tmp_path / "a.toml").write_text("#" * (MAX_TOML + 1))
    with pytest.raises(ConfigError, match="1,000,001 bytes; the limit is 1,000,000"):
        read_toml(tmp_path / "a.toml", "plan", ConfigError)


def test_what_the_shell_has_opened_is_read(tmp_path):
    read, write = os.pipe()
    os.write(write, b"a = 1")
    os.close(write)
    assert read_toml(f"/dev/fd/{read}", "plan", ConfigError) == {"a": 1}
    os.close(read)
    with pytest.raises(InputError, match="not a regular file"):
        read_bytes("/dev/zero", "data", InputError)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_toml(tmp_path / "a.toml", "plan", ConfigError) == {"a": 1}


def test_a_long_name_is_named_by_its_ends():
    assert named("x" * 5000 + "end.toml").endswith("xend.toml'") and len(named("x" * 5000)) < 130
    assert json.loads(json.dumps(named("a.toml"))) == "'a.toml'"


# --- files that extend others --------------------------------------------------------------------


def extended(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return read_extended(folder / f"{next(iter(files))}.toml", "plan", ConfigError)


def test_a_file_takes_over_what_it_extends_key_by_key(tmp_path):
    (tmp_path / "deep").mkdir()
    found, files = extended(
        tmp_path,
        top='extends = "deep/mid.toml"\na = 1\nt.x = [1]\n[u]\n',
        **{"deep/mid": 'extends = "../low.toml"\na = 2\nb = 2\n[t]\nx = [2, 2]\ny = 2\n'},
        low="a = 3\nb = 3\nc = 3\nu = 3\n[t]\nx = 3\nz = 3\n",
    )
    assert found == {"a": 1, "b": 2, "c": 3, "u": {}, "t": {"x": [1], "y": 2, "z": 3}}
    assert [path.name for path in files] == ["mid.toml", "low.toml"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a": "extends = 3"}, "extends is 3, in '.*a.toml'"),
        ({"a": 'extends = "a.toml"'}, "'.*a.toml' extends '.*a.toml', which leads back to it"),
        ({"a": 'extends = "b.toml"', "b": 'extends = "./a.toml"'}, "b.toml' extends '.*a.toml'"),
        ({"a": 'extends = "no.toml"'}, r"no.toml' cannot be read: No such.*; '.*a.toml' extends"),
        ({"a": 'extends = "b.toml"', "b": "b ="}, "b.toml' is not valid TOML.*a.toml' extends it"),
        ({f"x{n}": f'extends = "x{n + 1}.toml"' for n in range(9)}, "extends more than 7 files"),
    ],
    ids=str,
)
def test_what_cannot_be_extended_is_named(tmp_path, files, said):
    with pytest.raises(ConfigError, match=said):
        extended(tmp_path, **files)
