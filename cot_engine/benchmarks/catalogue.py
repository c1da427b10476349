"""The benchmarks that are known by name: what kind of questions they have, and what is made of
their scores.

The names are VLMEvalKit's, in any case. AI2D_TEST and AI2D_TEST_NO_MASK have the same questions and
answers on other pictures, so that nothing but the name tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cot_engine.errors import ConfigError, UnknownNameError, shown

Kind = Literal["choice", "yes/no", "mathvista", "relaxed", "graded"]
Shape = Literal["plain", "circular", "hallusion", "mathvista", "mmvet"]


@dataclass(frozen=True, slots=True)
class Subset:
    """A mean of the scores of some categories, by a name of its own."""

    name: str
    column: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`kind`: how an answer is read; `shape`: what is made of the answers; `questions`: how many it
    has, None where that is not known here; `test`: its answers are not given out; `opens`: some of
    its questions have no options and are scored as if there were two."""

    name: str
    about: str
    kind: Kind = "choice"
    shape: Shape = "plain"
    questions: int | None = None
    subset: Subset | None = None
    test: bool = False
    opens: bool = False


_MMSTAR_R = Subset(
    "MMStar-R",
    "category",
    ("instance reasoning", "logical reasoning", "math", "science & technology"),
)
_MMBENCH_R = Subset(
    "MMBench-R",
    "l2-category",
    ("attribute_reasoning", "logic_reasoning", "relation_reasoning"),
)
_MMVET_R = Subset("MMVet-R", "capability", ("spat", "math"))


def _mmbench(name: str, said: str) -> Benchmark:
    about = f"Multiple choice with CircularEval, {said}."
    return Benchmark(name, about, shape="circular", subset=_MMBENCH_R, test="TEST" in name)


_LANGUAGES = (("EN", "English"), ("CN", "Chinese"))
_ALL = [
    Benchmark("MMStar", "Multiple choice, six categories.", questions=1500, subset=_MMSTAR_R),
    *(
        _mmbench(f"MMBench_{part}_{code}{end}", f"{language}, {part.lower()}, {version}")
        for end, version in (("_V11", "V1.1"), ("", "V1.0"))
        for part in ("DEV", "TEST")
        for code, language in _LANGUAGES
    ),
    Benchmark(
        "MMBench_V11",
        "Multiple choice with CircularEval, English, dev and test in one file, V1.1.",
        shape="circular",
        subset=_MMBENCH_R,
    ),
    Benchmark("CCBench", "Multiple choice on Chinese culture, CircularEval.", shape="circular"),
    Benchmark(
        "MMVet",
        "Free answers, graded 0 to 1 by a model, six capabilities.",
        "graded",
        "mmvet",
        218,
        _MMVET_R,
    ),
    Benchmark(
        "MathVista_MINI", "Mathematics: choices, numbers, lists.", "mathvista", "mathvista", 1000
    ),
    Benchmark("AI2D_TEST", "Multiple choice on diagrams, labels masked.", questions=3088),
    Benchmark("AI2D_TEST_NO_MASK", "Multiple choice on diagrams, labels seen.", questions=3088),
    Benchmark("HallusionBench", "Yes or no, by figure and question.", "yes/no", "hallusion", 951),
    Benchmark("ChartQA_TEST", "Short answers on charts, within 5 %.", "relaxed"),
    Benchmark("ScienceQA_VAL", "Multiple choice on school science."),
    Benchmark("ScienceQA_TEST", "Multiple choice on school science."),
    Benchmark("MMMU_DEV_VAL", "Multiple choice and open college questions.", opens=True),
]
BENCHMARKS: dict[str, Benchmark] = {each.name: each for each in _ALL}
ALIASES = {"mathvista": "MathVista_MINI", "chartqa": "ChartQA_TEST", "mmmu": "MMMU_DEV_VAL"}


def benchmark(name: str) -> Benchmark:
    """The one of that name, in any case. Raises UnknownNameError, ConfigError for a name that is
    only the beginning of several."""
    known = {each.lower(): each for each in BENCHMARKS} | ALIASES
    several = [each for each in BENCHMARKS if each.lower().startswith(f"{name.lower()}_")]
    if name.lower() not in known and several:
        which = f"{', '.join(several[:-1])} or {several[-1]}" if several[1:] else several[0]
        raise ConfigError(f"There are several benchmarks {shown(name)}.", f"Say which: {which}.")
    if name.lower() not in known:
        raise UnknownNameError("benchmark", name, BENCHMARKS)
    return BENCHMARKS[known[name.lower()]]
