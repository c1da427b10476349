"""What may be asked: the bodies of requests, as pydantic reads them and OpenAPI shows them.

The fields that OpenAI's clients know stand here, with what is done about each; those of a search
are the options of RunConfig, from where they are declared. Nothing is turned from one type into
another, and a field that is not there is an error.
"""

from __future__ import annotations

from dataclasses import Field as Declared
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from cot_engine.core.options import about, options_of
from cot_engine.core.stages import Stage
from cot_engine.options.config import RunConfig, keys_of

Scalar = bool | int | float | str | None
_STAGES, _WORDS = 32, 2_000
"""Stages of a plan and characters of each one's purpose and question, at most: they are in every
prompt, and a search has work to do for each pair of stages."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Lenient(BaseModel):
    """Of what clients send back of earlier replies only what is read here is checked."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class ImageUrl(Strict):
    url: str = Field(description="data:image/...;base64,..., or where it is allowed an address.")
    detail: str | None = Field(None, description="Ignored: --max-pixels bounds what is seen.")


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Lenient):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None


class StreamOptions(Lenient):
    include_usage: bool | None = None


class StageTable(Strict):
    """A stage of a plan, as `[[stage]]` of a plan's file."""

    tag: str
    purpose: str = Field(max_length=_WORDS)
    question: str = Field(max_length=_WORDS)
    length: int = 512
    width: int | None = None
    optional: bool = False
    needs_image: bool = False

    def stage(self) -> Stage:
        """Raises ConfigError."""
        return Stage(**self.model_dump())


class OpenAiRequest(Strict):
    """What OpenAI's clients may send."""

    model: str = Field(description="A name of /v1/models; NAME:STRATEGY or NAME:STRATEGY-N.")
    messages: list[Message] = Field(min_length=1, max_length=1000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, description="As max_completion_tokens.")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="A budget of so many new tokens, for the whole search."
    )


CALL = tuple(
    key for key in keys_of("search", "judging", "writing", "sampling") if key != "parameters"
)
"""The options of RunConfig that a request may have under their own names."""

IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "prediction"),
)
"""Fields of OpenAI's that change nothing here. `user` names a client where there are no keys."""

NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "There is one answer. The candidates of each selection are n_candidates."),
    "frequency_penalty": ((0,), "Tokens are not penalised here."),
    "presence_penalty": ((0,), "Tokens are not penalised here."),
    "logit_bias": (({},), "Tokens cannot be favoured here."),
    "logprobs": ((False,), "The trace has the log-probability of every step."),
    "top_logprobs": ((0,), "The trace has the log-probability of every step."),
    "stop": (([],), "Stages end by their tags. Bound them by max_completion_tokens or detail."),
    "tools": (([],), "There are no tools here."),
    "tool_choice": (("none", "auto"), "There are no tools here."),
    "functions": (([],), "There are no functions here."),
    "function_call": (("none", "auto"), "There are no functions here."),
    "parallel_tool_calls": ((True, False), "There are no tools here."),
    "response_format": (({"type": "text"},), "An answer is text. Ask for its form in words."),
    "reasoning_effort": ((), "Give strategy, n_candidates, budget or detail."),
    "verbosity": (("medium",), "Give detail: brief, normal or full."),
    "modalities": ((["text"],), "An answer is text."),
    "audio": ((), "An answer is text."),
    "web_search_options": ((), "Nothing is searched on the web."),
    "moderation": ((), "Nothing is moderated here."),
}
"""Fields of OpenAI's that cannot be honoured: the values that ask for nothing (null always does),
and what is said to any other."""


def _option(each: Declared[Any]) -> tuple[Any, Any]:
    """An option of RunConfig, loosely typed: what it allows is checked, and said, where it is
    declared."""
    if each.name == "plan":
        return (
            list[StageTable] | None,
            Field(None, max_length=_STAGES, description="Other stages, in order."),
        )
    told = about(each)
    said = f"{told.help.format(each.default)} {told.metavar}".strip()
    return (Scalar, Field(None, description=said))


_FIELDS: dict[str, Any] = {
    **{each.name: _option(each) for each in options_of(RunConfig) if each.name in CALL},
    "parameters": (
        dict[str, Scalar | list[Scalar]] | None,
        Field(None, description="Any parameters of the strategy, by name."),
    ),
    "n_candidates": (int | None, Field(None, ge=1, description="The strategy's n.")),
    **{name: (Any, Field(None, description="Ignored.")) for name in IGNORED},
    "user": (str | None, Field(None, max_length=256, description="Who asks, without keys.")),
    **{
        name: (Any, Field(None, description=f"Refused: {why}"))
        for name, (_, why) in NEUTRAL.items()
    },
}
_Options: Any = create_model("_Options", __base__=OpenAiRequest, **_FIELDS)


class ChatRequest(_Options):
    """A question, its pictures, and options of the search."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every error looks like."""

    error: ErrorDetail
