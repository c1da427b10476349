"""What `cot-engine train-judge` does, from one TOML file, checked before anything is loaded.

    output = "runs/my-judge"

    [model]
    path = "runs/my-model/model"

    [pairs]
    data = "questions.jsonl"       # what `ablate` reads; or "scenes/train"
    temperature = 1.0

    [judge]
    prompt = "brief"
    keep = 0.25

    [data]                         # what `keep` is taken from, as of `cot-engine train`
    rows = "train.jsonl"
    images = "pictures"

    [train]
    steps = 2000
    batch = 32

The tables [model], [data], [train], [lora] and [quantize] are those of `sft_config`; [pairs] and
[judge] are below. Paths are relative to the file's folder, but `output`, which is relative to where
the command runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from cot_engine.ablation.worth import WHOLE
from cot_engine.core.plain import plain
from cot_engine.core.tables import Text, between, from_table, unknown
from cot_engine.errors import ConfigError
from cot_engine.judging.prompts import Form
from cot_engine.options.config import MAX_N
from cot_engine.training.sft_config import (
    HeldOut,
    Seed,
    SFTConfig,
    Share,
    Texts,
    parse_config,
    read_config,
)

TRAIN_SCENES = "scenes/train"
Weight = Annotated[float, between(0, 1000)]
_CORRUPTED = ("CAPTION", "REASONING", WHOLE)
SCENE_PROBLEMS = 2000
"""How many scenes are sampled where nothing else is said; 200 more are held out."""
SCENES_HELD_OUT = 200


@dataclass(frozen=True, slots=True)
class PairsTable:
    """[pairs]: `data` is a .jsonl or .tsv file of questions with answers, or scenes/train; its
    first `problems` [all; of scenes 2,000] are sampled from. `held_out` is what judges are measured
    on: another file or scenes/val, or how many problems (less than 1: a share) of the file, or of
    scenes/val, are kept for it. `calibration` is the share of these that the weight of likelihood
    is fitted on instead. `rule`: how a file's answers are graded, as in a grid.

    `stages` are tags, "whole" or "sentence". `n` candidates of each selection are sampled from
    `model` [the one that is trained], at `temperature`, `top_p` and `top_k`; at most `per_problem`
    pairs of a problem are kept. With
    `graded`, two wrong captions of a scene of which one has more right make a pair to train on.
    `plan` is a file of stages, `seed` that of the samples, `in_flight` how many problems are
    sampled at once."""

    data: Text = TRAIN_SCENES
    problems: Annotated[int, between(1, 10**8)] | None = None
    held_out: HeldOut | None = None
    calibration: Annotated[float, between(0, 0.9)] = 0.3
    rule: Text | None = None
    stages: Texts = ("CAPTION", "REASONING", WHOLE)
    n: Annotated[int, between(2, MAX_N)] = 4
    temperature: Annotated[float, between(0.01, 100)] = 1.0
    top_p: Annotated[float, between(0.01, 1)] = 1.0
    top_k: Annotated[int, between(0, 10**6)] = 0
    per_problem: Annotated[int, between(1, 1000)] = 6
    graded: bool = True
    model: Text | None = None
    plan: Text | None = None
    seed: Seed = 0
    in_flight: Annotated[int, between(1, 4096)] = 64

    def __post_init__(self) -> None:
        if self.data in ("scenes", "scenes/test"):
            raise ConfigError(
                f"pairs.data is {self.data!r}, the frozen test set.",
                f'It is there for measuring: train on "{TRAIN_SCENES}".',
            )


@dataclass(frozen=True, slots=True)
class JudgeTable:
    """[judge]: `prompt` is how the model is asked, now and in use: "brief" or "full".

    Every pair is learnt in both orders: the cross-entropy of the verdict's token, plus
    `consistency` times the square of the sum of both orders' margins (nats), which is what a bias
    to one place leaves. Plus `marks` times the cross-entropy of a linear head, thrown away later,
    that tells from the states after layer `marks_layer` [two thirds up] at the candidates' tokens
    whether what was said is true: of each claim where the data set knows that (of a false one its
    last two tokens, which count `false_weight` times), else the candidate's outcome at all of its
    tokens (Cobbe et al., arXiv 2110.14168). `keep` is the share of a batch that is answers as
    `train` learns them, from [data], and `keep_weight` counts their loss. `corruptions`, of scenes,
    is the share of the pairs that are not sampled but true texts against corrupted ones; before
    step `captions_first` all pairs are that, and captions: short ones to learn looking on. `sound`
    leaves out sampled pairs whose better text comes to a right answer by a false claim, where
    claims are known: it was lucky, and no judge can tell that it would be.

    `train.batch` counts pairs and kept answers alike; a pair is two sequences."""

    prompt: Form = "brief"
    consistency: Weight = 0.02
    marks: Weight = 1.0
    marks_layer: Annotated[int, between(1, 10_000)] | None = None
    false_weight: Weight = 3.0
    keep: Annotated[float, between(0, 0.9)] = 0.25
    keep_weight: Weight = 1.0
    corruptions: Share = 0.0
    captions_first: Annotated[int, between(0, 10**9)] = 0
    sound: bool = False


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """A whole training of a judge. `sft` holds what it has in common with `train`. Raises
    ConfigError for values that do not fit together."""

    sft: SFTConfig
    pairs: PairsTable
    judge: JudgeTable

    def __post_init__(self) -> None:
        pairs, judge, batch = self.pairs, self.judge, self.sft.train.batch
        scenes = pairs.data == TRAIN_SCENES
        if self.sft.format != "staged":
            raise ConfigError(f"format is {self.sft.format!r}.", "A judge needs stages: leave it.")
        for name in ("corruptions", "captions_first"):
            if (wanted := getattr(judge, name)) and not scenes:
                raise ConfigError(
                    f"judge.{name} is {wanted:g}, but pairs.data is {pairs.data!r}.",
                    f'Only of scenes is it known what to corrupt: "{TRAIN_SCENES}".',
                )
        strange = [name for name in pairs.stages if name not in _CORRUPTED]
        if judge.corruptions and strange:
            raise ConfigError(
                f"judge.corruptions is {judge.corruptions:g}, and pairs.stages has {strange[0]!r}.",
                f"Only these can be corrupted: {', '.join(_CORRUPTED)}.",
            )
        if self.sft.lora is not None and not self.sft.lora.merge:
            raise ConfigError("lora.merge is false.", "A judge is measured merged: leave it out.")
        if scenes and isinstance(pairs.held_out, float) and pairs.held_out < 1:
            raise ConfigError(
                f"pairs.held_out is {pairs.held_out:g}.", "Of scenes, give how many, such as 200."
            )
        if not 1 <= self.kept < batch and judge.keep:
            raise ConfigError(
                f"judge.keep is {judge.keep:g} of a batch of {batch}: {self.kept} answers.",
                "There must be one at least, and one pair: change train.batch.",
            )

    @property
    def kept(self) -> int:
        """How many of a batch are answers."""
        return round(self.judge.keep * self.sft.train.batch)

    @property
    def output(self) -> Path:
        return Path(self.sft.output)

    @property
    def folder(self) -> Path:
        return self.sft.folder

    def plain(self) -> dict[str, Any]:
        """The configuration as JSON has it, without what may differ from run to run."""
        pairs = {key: value for key, value in plain(self.pairs).items() if key != "in_flight"}
        return self.sft.plain() | {"pairs": pairs, "judge": plain(self.judge)}


def load_judge_config(path: str | Path, settings: Iterable[str] = ()) -> JudgeConfig:
    """Read a configuration. `settings` are "judge.marks=2", ... Raises ConfigError naming the file,
    the key and what is allowed."""
    return read_config(path, parse_judge_config, settings)


def parse_judge_config(table: dict[str, Any], folder: Path = Path()) -> JudgeConfig:
    """The training that a parsed TOML file describes. Raises ConfigError or UnknownNameError."""
    keys = (*(f.name for f in fields(SFTConfig) if f.name != "folder"), "pairs", "judge")
    for key in table:
        if key not in keys:
            raise unknown(key, keys)
    pairs = from_table(PairsTable, table.get("pairs", {}), "pairs")
    judge = from_table(JudgeTable, table.get("judge", {}), "judge")
    rest = {key: value for key, value in table.items() if key not in ("pairs", "judge")}
    train = rest.get("train", {})
    if isinstance(train, dict) and "epochs" in train:
        raise ConfigError(
            "[train] has epochs.", "A judge's batches mix pairs and answers: give steps."
        )
    if "data" not in rest:
        if judge.keep and pairs.data != TRAIN_SCENES:
            raise ConfigError(
                f"judge.keep is {judge.keep:g}, but there is no [data] to take answers from.",
                'Give one, such as rows = "train.jsonl", or set judge.keep to 0.',
            )
        rest["data"] = {"scenes": "train"}
    return JudgeConfig(parse_config(rest, folder), pairs, judge)
