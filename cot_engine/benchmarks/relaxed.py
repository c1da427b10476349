"""ChartQA's relaxed accuracy as VLMEvalKit has it.

After `relaxed_correctness` in `vlmeval/dataset/utils/vqa_eval.py` of open-compass/VLMEvalKit (the
same at e42058a1 and e8e78f05), which follows google-research/pix2struct, which follows the paper
(arXiv 2203.10244, section 5.1).
"""

from __future__ import annotations

from collections.abc import Iterable

from cot_engine.benchmarks.said import Said

WITHIN = 0.05


def relaxed(text: str, answers: Iterable[str]) -> tuple[Said, bool]:
    """Is the whole prediction any of the answers: within 5 % where both are numbers and the answer
    is not 0, else the same text in any case? "12%" is 0.12; "12 apples" is no number."""
    said = text.strip()
    value = _number(said)
    by = "the whole of it, as a number" if value is not None else "the whole of it"
    return Said(said, by), any(_near(said, value, answer) for answer in answers)


def _near(said: str, value: float | None, answer: str) -> bool:
    wanted = _number(answer)
    if value is None or not wanted:
        return said.lower() == answer.lower()
    return abs(value - wanted) / abs(wanted) <= WITHIN


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
