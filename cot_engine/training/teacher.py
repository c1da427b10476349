"""A teacher: a model behind an OpenAI-compatible server, asked by many at once, and politely.

    POST {base}/chat/completions {"model", "messages", "seed", "temperature", "max_tokens"}

What a server says is one of three things. A reply (HTTP 200) is paid for, whatever is in it, and
comes back as its text, so that it can be written down before anybody reads it. A refusal of this
one request (`Rejected`), or no answer after all retries (`Unanswered`), concerns one row. What
concerns all rows (no such server, key or model) is a `TeacherError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cot_engine.backends.server.http import (
    FIRST_WAIT,
    LONGEST,
    TRANSIENT,
    Line,
    Passing,
    explained,
    is_quota,
    retry_after,
    usage_of,
)
from cot_engine.backends.server.http import check_base_url as check_base_url
from cot_engine.backends.server.http import is_exposed as is_exposed
from cot_engine.errors import ConfigError, CotEngineError, InputError, cut

Message = dict[str, Any]

MAX_WAIT = 600.0
"""Seconds that a server may ask to wait. If it asks for more, the run ends and can go on later."""
_OPTIONAL = ("seed", "temperature")
_UNSUPPORTED = re.compile(r"support|unknown|unrecogni|extra|not permitted|not allowed|unexpected")
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class TeacherError(CotEngineError):
    """The teacher cannot be used at all: address, key, model, quota."""


class Rejected(Exception):
    """The server will not answer this request; asking again would not help. Nothing was paid."""


class Unanswered(Exception):
    """No answer after all retries; a later run may have more luck."""


class Stopped(Exception):
    """No new calls are made."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What is in a reply. `finish` is the server's finish_reason; `refusal` its text, if it is one;
    `garbage` says what is wrong with a body that is no reply. Tokens are None where the server
    does not count them; `cached` are those of the prompt that it had seen before."""

    text: str = ""
    finish: str = ""
    refusal: str = ""
    garbage: str = ""
    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None


def read_reply(body: str) -> Reply:
    """The reply in the body of an HTTP 200. Never raises: anything may be in there."""
    try:
        found = json.loads(body, parse_int=_int)
    except (ValueError, RecursionError) as error:
        return Reply(garbage=f"the reply is not JSON: {error}")
    tokens: dict[str, Any] = dict(
        zip(("prompt", "completion", "cached"), usage_of(found), strict=True)
    )
    try:
        choice = found["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Reply(garbage="the reply has no choices[0].message", **tokens)
    if isinstance(text, list):  # some servers answer in parts
        parts = [part.get("text") for part in text if isinstance(part, dict)]
        text = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(text, (str, type(None))):
        return Reply(garbage=f"the reply's content is a {type(text).__name__}", **tokens)
    text = _THOUGHT.sub("", text or "").strip().encode("utf-8", "replace").decode()
    finish = finish if isinstance(finish, str) else ""
    return Reply(text, finish, refusal if isinstance(refusal, str) else "", **tokens)


def _int(text: str) -> int | None:
    """An integer of JSON; None for one that nobody counted to, which is no reason to lose a text
    that was paid for."""
    return int(text) if len(text) < 16 else None


class Pace:
    """When the next call may start: shared by all who call, so that all of them slow down.

    `rpm` is the most calls per minute, evenly spaced. `stop` set means that none starts any more.
    """

    def __init__(self, rpm: float | None = None) -> None:
        self.stop = asyncio.Event()
        self.paused_until = 0.0
        self._next = 0.0
        self._interval = 60.0 / rpm if rpm else 0.0

    async def turn(self) -> None:
        """Wait for one's turn. Raises Stopped."""
        while not self.stop.is_set():
            now = time.monotonic()
            wait = max(self.paused_until, self._next) - now
            if wait <= 0:
                self._next = now + self._interval
                return
            await self.sleep(wait)
        raise Stopped

    async def sleep(self, seconds: float) -> None:
        """Raises Stopped, at once when it is."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)
        if self.stop.is_set():
            raise Stopped

    async def pause(self, seconds: float) -> None:
        """Nobody starts a call for so long; does not wait itself."""
        self.paused_until = max(self.paused_until, time.monotonic() + seconds)


@dataclass
class Teacher:
    """A client of one server. Use it as an async context manager, inside one event loop.

    At most `in_flight` requests are open at a time, each for `timeout` seconds at most.
    `key` goes into the Authorization header and nowhere else: where a server repeats it, it is
    blotted out. `retries` are for what passes by itself: 429, 5xx, timeouts, broken connections.
    `tell` is told of pauses and of what the server does not take. `open` is the number of requests
    that are being answered.
    """

    base_url: str
    key: str = field(default="", repr=False)
    pace: Pace = field(default_factory=Pace)
    timeout: float = 120.0
    retries: int = 6
    in_flight: int = 8
    tell: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        try:
            self._line = Line(self.base_url, self.key)
        except ConfigError:
            raise
        except InputError as error:  # a library that is missing
            raise TeacherError(error.message, error.hint) from None
        self.base_url = self._line.base_url
        self._without: set[str] = set()
        self._answered = 0
        self.open = 0

    async def __aenter__(self) -> Teacher:
        self._places = asyncio.Semaphore(self.in_flight)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._line.aclose()

    async def ask(
        self, model: str, messages: list[Message], *, seed: int, temperature: float, tokens: int
    ) -> str:
        """The body of the reply, as it came. Raises Rejected, Unanswered, Stopped, TeacherError."""
        options = {"seed": seed, "temperature": temperature, "max_tokens": tokens}
        retried = self._line.tenacity.AsyncRetrying(
            retry=self._line.tenacity.retry_if_exception_type(Passing),
            stop=self._tired,
            wait=self._wait,
            sleep=self.pace.pause,
        )
        return await retried(self._once, model, messages, options)

    async def _once(self, model: str, messages: list[Message], options: dict[str, Any]) -> str:
        seen = self._answered
        try:
            # Whoever waits for a place has not had its turn: a pause holds it back too.
            async with self._places:
                await self.pace.turn()
                sent = self._options(options)
                async with asyncio.timeout(self.timeout):
                    status, headers, body = await self._post(
                        {"model": model, "messages": messages, **sent}
                    )
        except TimeoutError:
            raise Passing(f"no answer in {self.timeout:g} s") from None
        except self._line.http.HTTPError as error:  # also a body that cannot be decoded
            if isinstance(error, self._line.http.ConnectError) and not self._answered:
                raise self._unreachable(error) from None
            raise self._line.broke(error) from None
        if status == 200:
            self._answered += 1
            return self._line.blot(body)
        said = f"HTTP {status}: {self._line.said(body)}"
        if status == 400 and self._adapt(sent, body):
            return await self._once(model, messages, options)
        if status not in TRANSIENT or is_quota(body):
            raise await self._final(status, said, model, headers)
        raise Passing(said, retry_after(headers), status == 429 and self._answered != seen)

    def _tired(self, state: Any) -> bool:
        """Was it tried often enough? Raises Unanswered."""
        passing = state.outcome.exception()
        if passing.queued:
            state.attempt_number = 1
        if state.attempt_number > self.retries:
            raise Unanswered(f"{passing}; tried {state.attempt_number} times")
        return False

    def _wait(self, state: Any) -> float:
        """The seconds that all are to wait. Raises TeacherError."""
        passing = state.outcome.exception()
        wait = passing.wait
        if wait is None:
            wait = self._line.tenacity.wait_exponential(FIRST_WAIT, LONGEST)(state)
            wait += self._line.tenacity.wait_random(0, FIRST_WAIT)(state)
        if wait > MAX_WAIT:
            raise TeacherError(
                f"The teacher asks to wait {wait:,.0f} s ({passing}); at most {MAX_WAIT:g} s are"
                " waited.",
                "Start again later: what is done is kept.",
            )
        self.tell(f"The teacher: {passing}. All wait {wait:.1f} s.")
        return wait

    async def _post(self, payload: dict[str, Any]) -> tuple[int, Any, str]:
        self.open += 1
        try:
            return await self._line.ask("chat/completions", payload)
        finally:
            self.open -= 1

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        sent = {k: v for k, v in options.items() if k not in self._without}
        if "max_tokens" in self._without:
            sent["max_completion_tokens"] = options["max_tokens"]
        return sent

    def _adapt(self, sent: dict[str, Any], body: str) -> bool:
        """Leave out, from now on, what the server says it does not know. Is there any?"""
        said = explained(body).lower()
        odd = [k for k in _OPTIONAL if k in sent and k in said and _UNSUPPORTED.search(said)]
        if "max_tokens" in sent and "max_completion_tokens" in said:
            odd.append("max_tokens")
        for name in odd:
            if name not in self._without:
                self._without.add(name)
                self.tell(f"Note: the teacher does not take {name}: it is asked without.")
        return bool(odd)

    async def _final(self, status: int, said: str, model: str, headers: Any) -> Exception:
        """What to raise for an answer that asking again would not change."""
        if status in (401, 403):
            key = "The key that was sent is not accepted" if self.key else "No key was sent"
            return TeacherError(
                f"The teacher at {self.base_url} will not have us ({said}).",
                f"{key}: put it into the environment variable that --key-env names.",
            )
        if status == 402 or status == 429:
            return TeacherError(
                f"The teacher's quota is used up ({said}).", "Top it up; what is done is kept."
            )
        if status == 404:
            known = await self._models()
            near = difflib.get_close_matches(model, known, n=3, cutoff=0.4) or known[:5]
            hint = f"It has: {', '.join(near)}." if near else "Does --base-url end in /v1?"
            return TeacherError(
                f"The teacher at {self.base_url} knows no model {model!r} ({said}).", hint
            )
        if 300 <= status < 400:
            return TeacherError(
                f"The teacher at {self.base_url} redirects (HTTP {status}).",
                f"Give its own address: {cut(headers.get('location', 'unknown'), 200)}",
            )
        if status == 405:
            return TeacherError(
                f"{self.base_url} takes no chat completions ({said}).", "Check --base-url."
            )
        return Rejected(said)

    async def _models(self) -> list[str]:
        """The names that the server lists, if it does."""
        try:
            async with asyncio.timeout(10):
                _, _, body = await self._line.ask("models")
            return [str(m["id"]) for m in json.loads(body)["data"]]
        except (
            self._line.http.HTTPError,
            ValueError,
            LookupError,
            TypeError,
            RecursionError,
            OSError,
        ):
            return []

    def _unreachable(self, error: Exception) -> TeacherError:
        return TeacherError(
            f"No teacher answers at {self.base_url}: {error or type(error).__name__}.",
            "Is the server running? --base-url is its address, usually ending in /v1.",
        )
