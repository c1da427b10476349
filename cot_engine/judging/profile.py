"""What a model's folder says of judging with it: the file `cot_engine.json` beside the weights.

    {"judge": "self+likelihood", "judge_prompt": "brief", "likelihood_weight": 1.3}

Every key may be left out. A judge asked for by its name is made here, so that the same name means
the same judge of a model wherever it is asked for. `rows.py` has what it says of strategies.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from cot_engine import plugins
from cot_engine.core.plain import plain
from cot_engine.core.requests import BackendInfo
from cot_engine.core.tables import from_table, is_text, located, must
from cot_engine.errors import ConfigError, UnknownNameError, shown
from cot_engine.files.reading import read_json
from cot_engine.files.writing import check_writable, unwritable, write_whole
from cot_engine.judging.probe import Probe
from cot_engine.judging.prompts import Form
from cot_engine.judging.protocol import Judge
from cot_engine.judging.rows import Row, Sample, check_rows

FILE = "cot_engine.json"


def is_finite(value: Any) -> bool:
    """Is it a number that a float can hold?"""
    return type(value) in (int, float) and abs(value) < math.inf


def is_file_name(value: Any) -> bool:
    """Is it the name of a file, without folders? A profile comes along with its model, and may be
    anybody's: it names what lies beside it."""
    return is_text(value) and value not in (".", "..") and not {*value} & {"/", "\\", "\0"}


def _check_stays(kind: plugins.Kind, name: str) -> None:
    """Raises ConfigError for a judge or verifier that sends questions and pictures, and with them a
    key, to another machine: that takes the user's own word."""
    if not plugins.is_verifier(plugins.spelled(name)[0]):
        return
    for binding in getattr(plugins.make(kind, name), "bindings", ()):
        for address in binding.model.split(","):
            try:
                host = urlsplit(address.strip()).hostname
            except ValueError:
                host = address
            if host not in (None, "localhost", "127.0.0.1", "::1"):
                raise ConfigError(
                    f"The {shown(name)} of the profile sends what it judges to {shown(host)}.",
                    "A profile comes with its model and may not: name it yourself (--judge, or "
                    "the strategy's verifier).",
                )


def _beside(name: str, profile: Path) -> str:
    """A verifier's file is named as it stands from the profile's folder."""
    beside = profile.parent / name
    return str(beside) if name.endswith(".toml") and beside.is_file() else name


@dataclass(frozen=True, slots=True)
class Profile:
    """`judge` is the one that "auto" stands for, `verifier` the scorer that it stands for (None:
    likelihood). `judge_prompt` is how the judges self and self+likelihood ask the model: "brief"
    for one trained to judge. `likelihood_weight` is what self+likelihood weighs likelihood with
    (None: nobody has fitted it). `probe` is a file beside the weights that reads the model's states
    (`judging.probe`). `auto` says which strategy pays at which budget, `sample` what one response
    costs, by unit (`judging.rows`)."""

    judge: Annotated[str, must("the name of a judge", is_text)] = "self"
    judge_prompt: Form = "full"
    likelihood_weight: Annotated[float, must("a finite number, or null", is_finite)] | None = None
    verifier: Annotated[str, must("the name of a scorer, or null", is_text)] | None = None
    probe: Annotated[str, must("the name of a file beside it, or null", is_file_name)] | None = None
    sample: Sample | None = field(default=None, hash=False)
    auto: tuple[Row, ...] = ()

    @classmethod
    def of(cls, folder: str | Path) -> Profile:
        """The profile in a model's folder; the default one where there is none, or no such folder.

        Raises ConfigError for a file that cannot be read or holds what will not do, and
        UnknownNameError for a judge or a verifier that there is not. One that would send what it
        judges to another machine will not do.
        """
        path = Path(folder) / FILE
        if not os.path.lexists(path):
            return cls()
        found = read_json(path, "profile", ConfigError)
        if not isinstance(found, dict):
            raise ConfigError(f"The profile {str(path)!r} holds {shown(found)}.", "Give an object.")
        with located(path):
            made = from_table(cls, found)
            made = replace(made, judge=_beside(made.judge, path))
            if not plugins.exists("judge", made.judge):
                raise UnknownNameError("judge called", made.judge, plugins.names("judge"))
            _check_stays("judge", made.judge)
            if made.verifier is not None:
                made = replace(made, verifier=_beside(made.verifier, path))
                name, _ = plugins.spelled(made.verifier or "")
                if not plugins.exists("scorer", name):
                    raise UnknownNameError("scorer called", name, plugins.names("scorer"))
                _check_stays("scorer", made.verifier or "")
            check_rows(made.auto, made.sample)
        return made

    def write(self, folder: str | Path) -> Path:
        """Write the profile to a model's folder, whole or not at all, and return the file's path.
        What is at its default is left out. Raises ConfigError."""
        path = Path(folder) / FILE
        values = {
            f.name: plain(getattr(self, f.name))
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }
        hint = "It belongs into the model's own folder; write it there by hand, or use a copy."
        if not path.parent.is_dir():
            error = FileNotFoundError(0, "there is no such folder")
            raise unwritable(path, error, "The profile", ConfigError, hint)
        write_whole(path, json.dumps(values) + "\n", "The profile", ConfigError, hint)
        return path

    def after_training(self) -> tuple[Profile, str]:
        """What of it still holds of weights that grew out of this model's, and what to say of the
        rest ("" if all does).

        How it is asked to judge (`judge_prompt`) is what it was taught, and stays. The weight of
        likelihood, the probe and the table of strategies were fitted on what the old weights said
        and held, and go; so do a default judge and a verifier that cannot be made without them.
        """
        lost = []
        kept = self
        if self.likelihood_weight is not None:
            needs = self.judge == "self+likelihood"
            kept = replace(kept, likelihood_weight=None, judge="self" if needs else self.judge)
            lost.append(
                f"The likelihood_weight {self.likelihood_weight:g} in {FILE} was fitted on the"
                " weights before and is not taken over"
                + (", so the default judge is self" if needs else "")
                + ". Fit it anew: cot-engine judge-report --model FOLDER --problems 500 --fit "
                "--write-profile."
            )
        if self.probe is not None:
            verifier = None if self.verifier == "states" else self.verifier
            kept = replace(kept, probe=None, verifier=verifier)
            lost.append(
                f"The probe {self.probe} in {FILE} reads the states of the weights before and is"
                " not taken over. Fit one anew: cot-engine train-verifier QUESTIONS --model FOLDER"
                " --write-profile."
            )
        if self.auto or self.sample:
            kept = replace(kept, auto=(), sample=None)
            lost.append(
                f"What {FILE} says of strategies and their cost (auto, sample) was measured on the"
                " weights before and is not taken over. cot-engine train-verifier measures it."
            )
        return kept, " ".join(lost)

    def make_judge(self, name: str = "auto") -> Judge:
        """The judge of that name for the model of this profile; "auto": its default one.

        Raises UnknownNameError, ConfigError if the weight of self+likelihood was never fitted, or
        StrategyError if a package's judge cannot be made.
        """
        name = self.name_of(name)
        judge: Judge = plugins.make("judge", name, self.parameters(name))
        return judge

    def name_of(self, name: str) -> str:
        """The judge that a name stands for, which may be "auto"."""
        return self.judge if name == "auto" else name

    def parameters(self, name: str) -> dict[str, Any]:
        """What this profile gives to the judge of that name. Raises ConfigError as `make_judge`."""
        name, own = plugins.spelled(name)  # what stands in it goes before the profile's
        if name not in ("self", "self+likelihood"):
            return {}
        given: dict[str, Any] = {"prompt": self.judge_prompt}
        if name == "self+likelihood" and "weight" not in own:
            if self.likelihood_weight is None:
                raise ConfigError(
                    "The judge self+likelihood needs a weight, and the model's profile"
                    f" ({FILE}) has no likelihood_weight.",
                    "Fit one: cot-engine judge-report --model FOLDER --fit --write-profile.",
                )
            given["weight"] = self.likelihood_weight
        return {key: value for key, value in given.items() if key not in own}


def probe_for(
    info: BackendInfo,
    wanted: str | Path,
    profile: Profile,
    folder: str | Path,
    on_notice: Callable[[str], None] | None = None,
    holds: tuple[int, tuple[int, ...]] | None = None,
) -> Probe | None:
    """The probe `wanted` for a model: a file, "none", or "auto": that of its `profile` in `folder`,
    which is left out, and `on_notice` told, where it is not for that model (`holds` is as in
    `Probe.check`).
    Raises ConfigError for a file that will not do."""
    if str(wanted) == "none" or (str(wanted) == "auto" and profile.probe is None):
        return None
    if str(wanted) != "auto":
        probe = Probe.of(wanted)
        probe.check(info.digest, info.model, holds)
        return probe
    probe = Probe.of(Path(folder) / str(profile.probe))
    try:
        probe.check(info.digest, info.model, holds)
    except ConfigError as error:
        if on_notice is not None:
            on_notice(f"{error.message} It is left out. {error.hint}")
        return None
    return probe


def check_profile_folder(folder: str | Path) -> None:
    """Raises ConfigError if no profile can be written there."""
    if not os.path.isdir(folder):
        raise ConfigError(
            f"The model {str(folder)!r} is no folder on this machine.",
            "--write-profile needs one: download the model and give its folder.",
        )
    hint = "Leave --write-profile out and write the file by hand, or use a copy."
    check_writable(Path(folder) / FILE, "The profile", ConfigError, hint)
