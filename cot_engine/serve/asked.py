"""A request as a question, its pictures and the options of a search."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import Any

from cot_engine import plugins
from cot_engine.core.stages import Plan
from cot_engine.errors import ConfigError, ImageError, InputError, UnknownNameError, shown
from cot_engine.serve.desk import Picture
from cot_engine.serve.schema import CALL, NEUTRAL, ImagePart, Message, TextPart

_DATA = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_NUMBERED = re.compile(r"(.+)-([0-9]{1,4})")
_WHO = {"user": "User", "assistant": "Assistant"}
_SYSTEM = ("system", "developer")


class NoModel(InputError):
    """No model of that name is served here."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks: for `Desk.open`."""

    pictures: list[Picture]
    question: str
    options: dict[str, Any]


def asked(request: Any, served: str) -> Asked:
    """What a ChatRequest asks of the model that is served by that name. Pictures are decoded from
    base64, so that it takes a moment. Raises NoModel, and InputError and ConfigError for what
    cannot be done."""
    _check_neutral(request)
    options = {key: getattr(request, key) for key in CALL if getattr(request, key) is not None}
    options |= strategy_of(request.model, served, options.get("strategy"))
    parameters = dict(request.parameters or {})
    if request.n_candidates is not None:
        if "n" in parameters:
            raise ConfigError("n stands in parameters and as n_candidates.", "Give it once.")
        parameters["n"] = request.n_candidates
    own = options.pop("parameters", {})
    if parameters or own:
        options["parameters"] = {**own, **parameters}
    if "plan" in options:
        options["plan"] = Plan(tuple(each.stage() for each in options["plan"]))
    _tokens(request, options)
    pictures, question = conversation(request.messages)
    return Asked(pictures, question, options)


# --- options -------------------------------------------------------------------------------------


def _check_neutral(request: Any) -> None:
    for name, (values, why) in NEUTRAL.items():
        value = getattr(request, name)
        if value is not None and not any(
            type(value) is type(each) and value == each for each in values
        ):
            raise _field(name, value, why)


def _field(name: str, value: Any, why: str) -> ConfigError:
    return ConfigError(f"{name} is {shown(value)}.", why)


def strategy_of(model: str, served: str, given: Any) -> dict[str, Any]:
    """The strategy in a model's name: "bundled:stage-beam-4". Raises NoModel."""
    name, colon, spelled = model.removeprefix(served).partition(":")
    if not model.startswith(served) or name or (colon and not spelled):
        raise NoModel(f"The model {shown(model)} is not served here.", f"It is {served}.")
    if not colon:
        return {}
    if given is not None:
        raise ConfigError(
            f"The model's name has a strategy, {shown(spelled)}, and strategy is {shown(given)}.",
            "Give one of them.",
        )
    known = plugins.choices("strategy")
    if spelled in known:
        return {"strategy": spelled}
    if (found := _NUMBERED.fullmatch(spelled)) and found[1] in known:
        if found[1] == plugins.AUTO or "n" not in plugins.parameters("strategy", found[1]):
            raise NoModel(f"The strategy {found[1]} has no n.", f"Write {served}:{found[1]}.")
        return {"strategy": found[1], "parameters": {"n": int(found[2])}}
    error = UnknownNameError("strategy", spelled, known)
    raise NoModel(f"The model {shown(model)} is not served here: {error.message}", error.hint)


def _tokens(request: Any, options: dict[str, Any]) -> None:
    """The bound of new tokens as a budget: it is on what `usage` counts as completion_tokens."""
    bounds = {request.max_tokens, request.max_completion_tokens} - {None}
    if not bounds:
        return
    if "budget" in options:
        raise ConfigError(
            "budget stands beside max_completion_tokens, which is one of new tokens.",
            "Give one of them.",
        )
    options["budget"] = f"{min(bounds)} new tokens"


# --- messages ------------------------------------------------------------------------------------


def conversation(messages: list[Message]) -> tuple[list[Picture], str]:
    """The pictures and the question. One user's turn is the question as it stands. What a system
    said goes before it, and so do earlier turns, as text that says whose they were: a search has
    one question. Raises InputError."""
    last = messages[-1]
    if last.role != "user":
        raise InputError(
            f"The last message is the {last.role}'s.",
            "It must be the user's: no reply can be continued here.",
        )
    pictures: list[Picture] = []
    for message in messages:
        if message.tool_calls:
            raise InputError("A message has tool_calls.", "There are no tools here.")
        pictures += [_picture(each.image_url.url) for each in _parts(message, ImagePart)]
        if pictures and message.role != "user" and _parts(message, ImagePart):
            raise InputError(f"A {message.role}'s message has a picture.", "Users may send them.")
    system = [text for message in messages if message.role in _SYSTEM if (text := _text(message))]
    turns = [
        f"{_WHO[message.role]}: {_text(message)}"
        for message in messages[:-1]
        if message.role in _WHO
    ]
    earlier = ["Earlier in this conversation:\n" + "\n".join(turns)] if turns else []
    question = _text(last)
    if not question.strip():
        raise InputError("The last message has no text.", "Write what you want to know.")
    return pictures, "\n\n".join([*system, *earlier, question])


def _parts(message: Message, kind: type) -> list[Any]:
    content = message.content
    return [each for each in content if isinstance(each, kind)] if isinstance(content, list) else []


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in _parts(message, TextPart))


def _picture(url: str) -> Picture:
    """Raises ImageError."""
    if url.startswith(("http://", "https://")):
        return url
    begin = _DATA.match(url[:200])
    if begin is None:
        raise ImageError(
            f"An image's url is {shown(url)}.",
            "Send the picture itself: data:image/png;base64, and its bytes in base64.",
        )
    try:
        return binascii.a2b_base64(url[begin.end() :].encode("ascii"), strict_mode=True)
    except ValueError as error:
        raise ImageError(
            f"An image's data is not base64: {error}.", "Encode the bytes of its file."
        ) from None
