"""What a server wrote, whole or in pieces as they come, and the continuation that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cot_engine.backends.server.http import Passing, usage_of
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Finish, Generation

_LONGEST = 32  # characters of a token: as many may stand behind the boundary that it crosses
_NUMBER = "token_id:"
_NEVER = -9999.0  # in place of minus infinity, as vLLM says it
UNKNOWN = -1
"""The number of a token where the server does not tell it."""


class Garbage(Passing):
    """A body that is no reply."""


class Refused(Exception):
    """A reply of which asking again would not change that it is none."""


@dataclass(frozen=True, slots=True)
class Token:
    """One that was written: its number, its text as far as it has one alone, its
    log-probability."""

    id: int
    text: str
    logprob: float


@dataclass
class Written:
    """One reply, as far as it is there. `early`: the server does not know where it ends, which is
    at the boundary `until`. `heard` is told how many tokens there are; `sent`: it was asked for.
    `reason` is the stop string that was met, where it is named; numbers of tokens are None where
    the server does not count them. `tops` are those that might stand first, where it tells them.
    """

    until: Until = Until()
    early: bool = False
    heard: Callable[[int], None] = lambda tokens: None
    sent: bool = True
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str = ""
    reason: Any = None
    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    tops: tuple[Token, ...] = ()

    def whole(self, body: str) -> None:
        """A reply in one piece. Raises Garbage and Refused."""
        found = parsed(body)
        self._count(found)
        choice = _choice(found)
        message = choice.get("message")
        if not isinstance(message, dict):
            raise Garbage("the reply has no choices[0].message")
        self._take(choice, message)

    def event(self, data: str) -> bool:
        """A piece of a reply; whether nothing more need be read. Raises as `whole` does."""
        if data == "[DONE]":
            return True
        found = parsed(data)
        if "error" in found:
            raise Garbage(f"the server broke off: {found['error']}")
        self._count(found)
        if not found.get("choices"):
            return False
        choice = _choice(found)
        delta = choice.get("delta")
        self._take(choice, delta if isinstance(delta, dict) else {})
        self.heard(len(self.tokens) or int(self.text != ""))
        return self.early and self.until.end(self.text) is not None

    def _count(self, found: dict[str, Any]) -> None:
        prompt, completion, cached = usage_of(found)
        self.prompt = self.prompt if prompt is None else prompt
        self.completion = self.completion if completion is None else completion
        self.cached = self.cached if cached is None else cached

    def _take(self, choice: dict[str, Any], message: dict[str, Any]) -> None:
        if isinstance(message.get("refusal"), str) and message["refusal"]:
            raise Refused(f"it refuses: {message['refusal']}")
        for name in ("reasoning", "reasoning_content"):
            if message.get(name):
                raise Refused(
                    "it takes replies apart into thoughts and text, so that no stage is whole: it "
                    "runs with a reasoning parser"
                )
        text = message.get("content")
        if isinstance(text, list):  # some answer in parts
            parts = [part.get("text") for part in text if isinstance(part, dict)]
            text = "".join(part for part in parts if isinstance(part, str))
        if not isinstance(text, (str, type(None))):
            raise Garbage(f"the reply's content is a {type(text).__name__}")
        self.text += (text or "").encode("utf-8", "replace").decode()
        for entry in _entries(choice.get("logprobs")):
            if not self.tokens and isinstance(tops := entry.get("top_logprobs"), list):
                self.tops = tuple(token(each) for each in tops if isinstance(each, dict))
            self.tokens.append(token(entry))
        finish = choice.get("finish_reason")
        if isinstance(finish, str):
            if finish in ("abort", "error"):
                raise Garbage(f"the server gave the reply up ({finish})")
            self.finish = finish
            self.reason = choice.get("stop_reason", choice.get("matched_stop"))

    # --- the continuation ------------------------------------------------------------------------

    def generation(self, most: int, over: bool = False) -> Generation:
        """The continuation, cut at its boundary. `most` tokens were asked for; `over`: there was
        no time for more. Raises Refused for a reply that was held back."""
        if self.finish == "content_filter":
            raise Refused("its filter holds the reply back")
        text, tokens = self.text, self.tokens
        if self.finish == "stop" and isinstance(self.reason, str) and self.until.end(text) is None:
            text += self.reason  # it was cut off
        end = self.until.end(text)
        finish: Finish = "length" if self.finish == "length" else "eos"
        if end is not None:
            finish, tokens = "stop", _upto(tokens, text[:end])
            text = _with_rest(text[:end], tokens)
        elif over and not self.finish:
            finish = "budget"
        elif finish == "eos" and tokens and self._has_end(text):
            tokens = tokens[:-1]
        if not tokens and text:
            counted = self.completion or 1
            tokens = [Token(UNKNOWN, "", 0.0)] * (counted - (finish == "eos" and counted > 1))
        tokens = tokens[:most]
        return Generation(text, tuple(t.id for t in tokens), sum(t.logprob for t in tokens), finish)

    def _has_end(self, text: str) -> bool:
        """Whether the last token is what ended the reply: vLLM, which numbers tokens, lists it."""
        numbered = self.tokens[-1].id != UNKNOWN
        return numbered or _bare(_joined(self.tokens[:-1])) >= _bare(text)

    @property
    def decoded(self) -> int:
        """How many tokens were written, what ended it included."""
        return max(self.completion or 0, len(self.tokens), int(self.text != ""))


def parsed(body: str) -> dict[str, Any]:
    """The object in a body. Raises Garbage."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Garbage(f"the reply is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Garbage(f"the reply is a {type(found).__name__}")
    return found


def token(entry: dict[str, Any]) -> Token:
    """One of a reply's logprobs. Raises Garbage."""
    name, logprob, spelled = entry.get("token"), entry.get("logprob"), entry.get("bytes")
    if not isinstance(name, str) or isinstance(logprob, bool):
        raise Garbage("the reply's logprobs have no token")
    if not isinstance(logprob, (int, float)) or logprob != logprob:
        raise Garbage(f"a token has the logprob {logprob!r}")
    number, text, digits = UNKNOWN, name, name.removeprefix(_NUMBER)
    if len(digits) < len(name) and digits.isdecimal() and len(digits) < 16:
        try:
            number, text = int(digits), bytes(spelled or ()).decode("utf-8", "replace")
        except (TypeError, ValueError):
            text = ""
    return Token(number, text, min(max(float(logprob), _NEVER), 0.0))


def _choice(found: dict[str, Any]) -> dict[str, Any]:
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Garbage("the reply has no choices[0]")
    return choices[0]


def _entries(logprobs: Any) -> list[dict[str, Any]]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [e for e in content if isinstance(e, dict)] if isinstance(content, list) else []


# --- which tokens belong to a text ---------------------------------------------------------------

# Alone, a token of a SentencePiece vocabulary has lost the space before it, and half a character is
# none: tokens are matched to a text by the characters that are not spaces.


def _joined(tokens: list[Token]) -> str:
    return "".join(t.text for t in tokens)


def _bare(text: str) -> int:
    """Characters that are not spaces."""
    return len("".join(text.split()))


def _upto(tokens: list[Token], text: str) -> list[Token]:
    """The tokens that reach to the end of `text`: one across the boundary belongs to it whole."""
    wanted, reached = _bare(text), 0
    for at, each in enumerate(tokens, 1):
        reached += _bare(each.text)
        if reached >= wanted:
            return tokens[:at]
    return tokens


def _with_rest(text: str, tokens: list[Token]) -> str:
    """`text` with what its last token adds behind the boundary."""
    joined = _joined(tokens)
    rest = joined[len(text) :]
    return joined if joined.startswith(text) and len(rest) <= _LONGEST else text
