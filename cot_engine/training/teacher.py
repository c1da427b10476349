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
import email.utils
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cot_engine.errors import ConfigError, CotEngineError, cut, install

Message = dict[str, Any]

FIRST_WAIT = 1.0
"""Seconds before the first retry where the server names none; doubled with each, up to LONGEST."""
LONGEST = 60.0
MAX_WAIT = 600.0
"""Seconds that a server may ask to wait. If it asks for more, the run ends and can go on later."""
MAX_BODY = 16 * 2**20
"""Bytes of a reply; more is garbage."""
_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_OPTIONAL = ("seed", "temperature")
_UNSUPPORTED = re.compile(r"support|unknown|unrecogni|extra|not permitted|not allowed|unexpected")
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


class TeacherError(CotEngineError):
    """The teacher cannot be used at all: address, key, model, quota."""


class Rejected(Exception):
    """The server will not answer this request; asking again would not help. Nothing was paid."""


class Unanswered(Exception):
    """No answer after all retries; a later run may have more luck."""


class _Passing(Exception):
    """What passes by itself. `wait` are the seconds that the server asks for; `queued`: others are
    answered, so that it is only the queue, and not this request's fault."""

    def __init__(self, said: str, wait: float | None = None, queued: bool = False) -> None:
        super().__init__(said)
        self.wait, self.queued = wait, queued


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
    usage = found.get("usage") if isinstance(found, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    tokens: dict[str, Any] = {
        "prompt": _count(usage.get("prompt_tokens")),
        "completion": _count(usage.get("completion_tokens")),
        "cached": _count(details.get("cached_tokens")),
    }
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


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


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
        self.base_url = check_base_url(self.base_url)
        if not (self.key.isascii() and self.key.isprintable()):  # else an error would show it
            raise ConfigError("The key is not plain ASCII.", "Copy it again, alone.")
        self._without: set[str] = set()
        self._answered = 0
        self.open = 0
        try:
            import httpx2
            import tenacity
        except ImportError as error:
            raise TeacherError(f"This needs {error.name}.", install("data")) from None
        self._http, self._tenacity = httpx2, tenacity

    async def __aenter__(self) -> Teacher:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._places = asyncio.Semaphore(self.in_flight)
        limits = self._http.Limits(max_connections=self.in_flight)
        # Its own timeouts are for each read: a server that sends a byte now and then has forever.
        self._client = self._http.AsyncClient(headers=headers, timeout=None, limits=limits)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(
        self, model: str, messages: list[Message], *, seed: int, temperature: float, tokens: int
    ) -> str:
        """The body of the reply, as it came. Raises Rejected, Unanswered, Stopped, TeacherError."""
        options = {"seed": seed, "temperature": temperature, "max_tokens": tokens}
        retried = self._tenacity.AsyncRetrying(
            retry=self._tenacity.retry_if_exception_type(_Passing),
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
            raise _Passing(f"no answer in {self.timeout:g} s") from None
        except self._http.HTTPError as error:  # also a body that cannot be decoded
            if isinstance(error, self._http.ConnectError) and not self._answered:
                raise self._unreachable(error) from None
            broke = "the connection broke: " * isinstance(error, self._http.TransportError)
            raise _Passing(f"{broke}{type(error).__name__}: {error}") from None
        if status == 200:
            self._answered += 1
            return self._blot(body)
        said = f"HTTP {status}: {self._blot(_said(body))}"
        if status == 400 and self._adapt(sent, body):
            return await self._once(model, messages, options)
        if status not in _TRANSIENT or _quota(body):
            raise await self._final(status, said, model, headers)
        raise _Passing(said, _retry_after(headers), status == 429 and self._answered != seen)

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
            wait = self._tenacity.wait_exponential(FIRST_WAIT, LONGEST)(state)
            wait += self._tenacity.wait_random(0, FIRST_WAIT)(state)
        if wait > MAX_WAIT:
            raise TeacherError(
                f"The teacher asks to wait {wait:,.0f} s ({passing}); at most {MAX_WAIT:g} s are"
                " waited.",
                "Start again later: what is done is kept.",
            )
        self.tell(f"The teacher: {passing}. All wait {wait:.1f} s.")
        return wait

    async def _post(self, payload: dict[str, Any]) -> tuple[int, Any, str]:
        url = f"{self.base_url}/chat/completions"
        self.open += 1
        try:
            async with self._client.stream("POST", url, json=payload) as response:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_BODY:
                        break
                return response.status_code, response.headers, body.decode("utf-8", "replace")
        finally:
            self.open -= 1

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        sent = {k: v for k, v in options.items() if k not in self._without}
        if "max_tokens" in self._without:
            sent["max_completion_tokens"] = options["max_tokens"]
        return sent

    def _adapt(self, sent: dict[str, Any], body: str) -> bool:
        """Leave out, from now on, what the server says it does not know. Is there any?"""
        said = _said(body).lower()
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
            response = await self._client.get(f"{self.base_url}/models", timeout=10)
            return [str(m["id"]) for m in response.json()["data"]]
        except (self._http.HTTPError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def _unreachable(self, error: Exception) -> TeacherError:
        return TeacherError(
            f"No teacher answers at {self.base_url}: {error or type(error).__name__}.",
            "Is the server running? --base-url is its address, usually ending in /v1.",
        )

    def _blot(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def check_base_url(url: str) -> str:
    """The address without what people paste along. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        secret = bool(parts.username or parts.password)
    except ValueError:
        usable, secret = False, False
    if secret:
        raise ConfigError(
            "base-url holds a user name or password.", "Keys come from an environment variable."
        )
    if not usable or parts.query or parts.fragment:
        raise ConfigError(f"base-url is {url!r}.", 'Give one like "http://127.0.0.1:8000/v1".')
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")


def is_exposed(base_url: str) -> bool:
    """Would a key go to another machine unencrypted?"""
    parts = urlsplit(base_url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def _said(body: str) -> str:
    """What an error's body says, in short."""
    try:
        found = json.loads(body)
        error = found.get("error", found.get("detail", found.get("message", found)))
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        text = body
    text = text if isinstance(text, str) else json.dumps(text)
    return cut(" ".join(text.split()), 300) or "no explanation"


def _quota(body: str) -> bool:
    """OpenAI answers 429 also where the account is empty; waiting does not fill it."""
    return "insufficient_quota" in body


def _retry_after(headers: Any) -> float | None:
    """Seconds, from a number or a date; None where there is none."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
        return max(0.0, seconds) if seconds == seconds else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
