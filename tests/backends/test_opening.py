"""Which backend opens a model, by what its user calls it."""

from __future__ import annotations

import sys

import pytest

from cot_engine import plugins
from cot_engine.backends.opening import backend_of, open_backend
from cot_engine.errors import ConfigError, ModelError, UnknownNameError
from cot_engine.plugins import spelled

OPENER = """
    from dataclasses import dataclass
    from cot_engine.testing import ScriptedBackend

    @dataclass(frozen=True)
    class Opener:
        gave: str = "backend"
        models = "{claim}"
        def open(self, model, *, on_notice=None):
            if self.gave == "error":
                raise ZeroDivisionError("no such thing")
            return ScriptedBackend() if self.gave == "backend" else None
"""


def claiming(install, package, claim):
    name = package.replace("-", "_")
    install(package, OPENER.format(claim=claim), "backends", **{name: f"{name}:Opener"})


def test_local_is_there_and_takes_what_nobody_claims(install, tmp_path):
    assert plugins.names("backend") == ["local", "server"]
    assert plugins.parameters("backend", "local") == [
        "device",
        "dtype",
        "quantize",
        "max_rows",
        "memory",
        "adapter",
        "max_pixels",
    ]
    claiming(install, "pack1", "abc:.*")
    assert backend_of("abc:x") == "pack1"
    for model in ("bundled", "xabc:", "llava-hf/llava-1.5-7b-hf", tmp_path):
        assert backend_of(model) == "local"


def test_a_folder_is_never_anothers_and_asks_nobody(install, tmp_path):
    claiming(install, "greedy-pack", ".*")
    assert backend_of(tmp_path) == backend_of("bundled") == "local"
    assert "greedy_pack" not in sys.modules
    assert backend_of("somebody/model") == "greedy-pack"


def test_two_that_claim_a_model_are_told_apart_by_name_only(install):
    claiming(install, "pack-a", "x:.*")
    claiming(install, "pack-b", "x:.*")
    with pytest.raises(ConfigError, match="'x:1': pack-a, pack-b") as caught:
        open_backend("x:1")
    assert "backend='pack-a'" in caught.value.hint
    assert open_backend("x:1", "pack-b").info.name == "scripted"


def test_one_that_is_broken_claims_nothing_and_is_logged(install, caplog):
    install("bad-pack", "import nothing_of_the_kind", "backends", bad="bad_pack:Bad")
    claiming(install, "pack1", "abc:.*")
    assert open_backend("abc:1").info.name == "scripted"
    assert "bad-pack" in caplog.text


def test_what_does_not_open_is_named(install):
    claiming(install, "pack1", "abc:.*")
    for gave, said in (("error", "raised ZeroDivisionError: no such"), ("none", "opened None")):
        with pytest.raises(ModelError, match=rf"The backend pack1 \(Opener\) {said}"):
            open_backend("abc:1", parameters={"gave": gave})
    with pytest.raises(UnknownNameError, match=r"no backend 'lokal'.*Did you mean local"):
        open_backend("bundled", "lokal")
    with pytest.raises(UnknownNameError, match=r"called 'devcie'.*Did you mean device"):
        open_backend("bundled", "local(devcie=cpu)")
    with pytest.raises(ConfigError, match="has device, which is also given beside it"):
        open_backend("bundled", "local(device=cpu)", {"device": "cpu"})


# --- parameters in a name ------------------------------------------------------------------------


def test_a_name_may_hold_its_parameters():
    made = plugins.make("judge", "rationale(length=100)")
    assert (type(made).__name__, made.length) == ("RationaleJudge", 100)
    assert plugins.make("strategy", "stage-beam( n=6 )", {"keep": 2}).keep == 2
    assert plugins.load("judge", "rationale(length=1)") is plugins.load("judge", "rationale")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a", ("a", {})),
        ("a()", ("a", {})),
        ("self+likelihood(weight=1.5, prompt=brief)", ("self+likelihood", {"weight": "1.5"})),
        ("a(b=c:/d?e=f)", ("a", {"b": "c:/d?e=f"})),
        ("a(", ("a(", {})),
    ],
)
def test_spelling(text, found):
    name, own = spelled(text)
    assert name == found[0] and own.items() >= found[1].items()


@pytest.mark.parametrize("text", ["a(b)", "a(=1)", "a(b=)", "a(b=1,b=2)", "a(1b=2)"])
def test_spelling_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="cannot be read"):
        plugins.make("judge", text)
