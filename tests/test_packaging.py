"""What pyproject.toml puts into the wheel is all that the package is made of: a checkout that is
installed in place would never miss it."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOL = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]

pytestmark = pytest.mark.skipif(
    not (ROOT / "cot_engine").is_dir(), reason="the sources are not beside the tests"
)


def folders() -> dict[str, Path]:
    """Every package, by its name."""
    found = {}
    for name, top in TOOL["package-dir"].items():
        for init in (ROOT / top).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / top).parts
            found[".".join((name, *inside))] = init.parent
    return found


def lacking(packages: list[str], data: dict[str, list[str]]) -> set[str]:
    """The files of the package that a wheel of these would not have."""
    missing, all_of = set(), folders()
    for name, folder in all_of.items():
        deeper = [other for other in all_of.values() if folder in other.parents]
        for path in folder.rglob("*"):
            own = not any(other in path.parents for other in deeper)
            if not path.is_file() or not own or "__pycache__" in path.parts:
                continue
            inside = path.relative_to(folder).as_posix()
            listed = path.suffix == ".py" or any(fnmatch(inside, p) for p in data.get(name, ()))
            if name not in packages or not listed:
                missing.add(f"{name}/{inside}")
    return missing


def test_the_wheel_has_every_file():
    assert not lacking(TOOL["packages"], TOOL["package-data"])


def test_one_that_is_left_out_is_noticed():
    some = [name for name in TOOL["packages"] if name != "cot_engine.judging.verifiers"]
    assert "cot_engine.judging.verifiers/tokens.py" in lacking(some, TOOL["package-data"])
    assert "cot_engine.bundled/config.json" in lacking(TOOL["packages"], {})
