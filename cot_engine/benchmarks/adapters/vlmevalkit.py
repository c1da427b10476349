"""The engine as a model of VLMEvalKit, which has no entry points: this file registers it and starts
VLMEvalKit's own `run`.

    python -m cot_engine.benchmarks.adapters vlmevalkit --data MMStar --model cot-engine
    python -m cot_engine.benchmarks.adapters vlmevalkit --config runs.json   # "class": "CotEngine"

It asks question by question, so it is told that this is an API: then it asks from `--api-nproc`
threads, whose searches share one engine and the model's batch.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from functools import partial
from typing import Any

from cot_engine.benchmarks.adapters.respondent import (
    Picture,
    Reply,
    Respondent,
    importing,
    question_of,
)

with importing("VLMEvalKit", "pip install ms-vlmeval==0.0.20"):
    from vlmeval.vlm.base import BaseModel

NAME = "cot-engine"
_log = logging.getLogger(__name__)


class Record(dict[str, Any]):
    """A prediction with its columns, as VLMEvalKit's result file takes them: `prediction`, and
    `extra_records` with JSON.

    Where it mixes them with predictions of an earlier run, and in releases that know no columns, it
    writes `str()` of each: that is the prediction alone, and never the stages, which would be
    scored too. It looks for failures with `in`, so that is answered of the prediction as well.
    """

    def __str__(self) -> str:
        return str(self["prediction"])

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and key in str(self))


class CotEngine(BaseModel):
    """A model of VLMEvalKit. `options` are those of `Respondent`; `records` says whether columns go
    along, which the pipeline of `--api-mode` has no place for (None: wherever there is one)."""

    INTERLEAVE = True
    allowed_types = ["text", "image"]  # noqa: RUF012 - as the base class has it
    is_api = True

    def __init__(self, records: bool | None = None, **options: Any) -> None:
        super().__init__()
        self.records = "--api-mode" not in sys.argv if records is None else records
        self.respondent = Respondent(options)

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> Any:
        """The CONCLUSION of the answer to one message. A question that fails is told as VLMEvalKit
        tells it, by its sentence alone: words of the reason might be taken for an option."""
        reply = self._asked(message)
        text = reply.text
        if reply.error:
            _log.error("A question of %s has no answer: %s", dataset, reply.error)
            text = _fail_message()
        if not self.records:
            return text
        columns = json.dumps(reply.columns, ensure_ascii=False)
        return Record(prediction=text, extra_records=columns)

    def _asked(self, message: list[dict[str, str]]) -> Reply:
        parts = [
            Picture(part["value"]) if part["type"] == "image" else part["value"] for part in message
        ]
        return self.respondent.ask(*question_of([("user", parts)]))


def _fail_message() -> str:
    from vlmeval.inference import FAIL_MSG

    return str(FAIL_MSG)


def register(name: str = NAME, **options: Any) -> None:
    """Make `name` a model that `--model` takes, and CotEngine a class that `--config` takes."""
    import vlmeval.vlm
    from vlmeval.config import supported_VLM

    vlmeval.vlm.CotEngine = CotEngine
    supported_VLM[name] = partial(CotEngine, **options)


def main() -> None:
    """VLMEvalKit's `run`, with the engine among its models. Raises CotEngineError."""
    register()
    if importlib.util.find_spec("vlmeval.run") is not None:  # as it is packaged
        from vlmeval.run import main as run
    else:
        with importing("VLMEvalKit's run.py", "start this in the folder of its checkout,"):
            from run import main as run
    run()
