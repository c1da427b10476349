"""The engine as a model of lmms-eval, which finds it by an entry point (`lmms_eval.models`):

    lmms-eval --model cot-engine --model_args strategy=stage-beam,n=4 --tasks mmstar ...

It hands over all questions of a task at once, so `in_flight` of them are searched at a time.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from cot_engine import CotEngineError, InputError
from cot_engine.benchmarks.adapters.respondent import (
    Part,
    Picture,
    Reply,
    Respondent,
    importing,
    picture_of,
    question_of,
)

with importing("lmms-eval", "pip install lmms-eval==0.7.3"):
    from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
    from lmms_eval.api.model import lmms
    from loguru import logger
    from tqdm import tqdm

FAILED = "[LMMS_EVAL_REQUEST_FAILED]"
"""What its own models give for a question without an answer; the reason is in the columns."""


def manifest() -> Any:
    """What the entry point gives: where the model is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        "cot_engine", chat_class_path=f"{__name__}.CotEngine", aliases=("cot-engine",)
    )


class Columns(TokenCounts):
    """The tokens of one answer, and under `cot_engine` all its columns: the samples log has no
    other place for what a model says of an answer."""

    def __init__(self, columns: dict[str, Any]) -> None:
        used = columns.get("usage", {}).values()
        prefilled = sum(each["prefilled"] for each in used) if used else None
        super().__init__(input_tokens=prefilled, output_tokens=columns.get("new_tokens"))
        self.columns = columns

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "cot_engine": self.columns}


class CotEngine(lmms):
    """A model of lmms-eval. `options` are those of `Respondent`, by `--model_args`.

    What a task asks of sampling (`max_new_tokens`, `temperature`, `until`) is meant for a single
    reply and is not taken over: `budget`, `temperature` and so on are options here. `batch_size` is
    not, either: `in_flight` is. Repeats of a question are drawn with the seeds that follow.
    """

    is_simple = False

    def __init__(
        self, batch_size: Any = None, max_batch_size: Any = None, device: Any = None, **options: Any
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"lmms-eval was started as {os.environ['WORLD_SIZE']} processes.",
                "Start one, and name the devices: --model_args device=cuda:0+cuda:1 .",
            )
        if device is not None:
            options.setdefault("device", device)
        if isinstance(devices := options.get("device"), str):
            options["device"] = devices.replace("+", ",")  # a comma ends a model argument
        self.respondent = Respondent(options)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The CONCLUSION of each answer, with its columns."""
        times: Counter[tuple[Any, ...]] = Counter()
        rounds: dict[int, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            question = request.args[3:6]
            rounds[times[question]].append(place)
            times[question] += 1
        found: list[Any] = [None] * len(requests)
        with tqdm(total=len(requests), desc="cot-engine") as bar:
            for number, places in rounds.items():
                asked = (self._asked(requests[place]) for place in places)
                seed = self.respondent.config.seed + number
                replies = self.respondent.ask_all(asked, seed=seed)
                for place, reply in zip(places, replies, strict=True):
                    found[place] = self._result(requests[place], reply)
                    bar.update()
        return found

    def _asked(self, request: Instance) -> tuple[list[Any], str] | CotEngineError:
        _, messages, _, document, task, split = request.args
        try:
            return question_of(list(_turns(messages(self.task_dict[task][split][document]))))
        except CotEngineError as error:
            return error

    def _result(self, request: Instance, reply: Reply) -> GenerationResult:
        if reply.error:
            _, _, _, document, task, _ = request.args
            logger.error(f"Question {document} of {task} has no answer: {reply.error}")
        return GenerationResult(reply.text or FAILED, Columns(reply.columns))

    def loglikelihood(self, requests: list[Instance]) -> Any:
        """Raises InputError: a search writes answers."""
        raise InputError(
            "This task asks for log-likelihoods of given answers, and a search writes its own.",
            "Take a task of the type generate_until.",
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> Any:
        """Raises InputError: a search has one question."""
        raise InputError(
            "This task asks in several rounds, and a search has one question.",
            "Take a task of the type generate_until.",
        )

    def clean(self) -> None:
        """lmms-eval calls it once all is asked."""
        self.respondent.close()
        super().clean()


def _turns(messages: list[dict[str, Any]]) -> Iterator[tuple[str, list[Part]]]:
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        yield message["role"], [_part(part) for part in parts]


def _part(part: dict[str, Any]) -> Part:
    if part["type"] == "text":
        return str(part["text"])
    if part["type"] != "image":
        raise InputError(f"The question has a part of the type {part['type']}.", "It has no words.")
    url = part["url"]
    return picture_of(url) if isinstance(url, str) else Picture(url)
