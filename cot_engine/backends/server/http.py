"""HTTP to an OpenAI-compatible server: one line to it, and what its answers mean before their body
is read. The teacher's data is asked for over the same line as a search's continuations.

What a server says is worth asking again (`Passing`: it passes by itself), or it is final.
"""

from __future__ import annotations

import asyncio
import base64
import email.utils
import json
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import quote, urlsplit

from cot_engine.errors import ConfigError, InputError, cut, install

FIRST_WAIT = 1.0
"""Seconds before the first retry where the server names none; doubled with each, up to LONGEST."""
LONGEST = 60.0
MAX_BODY = 16 * 2**20
"""Bytes of a reply; more is garbage."""
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""Statuses that may be others in a moment."""
_EACH = 8  # connections of a client


class Passing(Exception):
    """What passes by itself. `wait` are the seconds that the server asks for; `queued`: others are
    answered, so that it is only the queue, and not this request's fault."""

    def __init__(self, said: str, wait: float | None = None, queued: bool = False) -> None:
        super().__init__(said)
        self.wait, self.queued = wait, queued


def libraries() -> tuple[ModuleType, ModuleType]:
    """httpx2 and tenacity. Raises InputError, which says how they are installed."""
    try:
        import httpx2
        import tenacity
    except ImportError as error:
        raise InputError(f"This needs {error.name}.", install("server")) from None
    return httpx2, tenacity


@dataclass
class _Client:
    """One of httpx2's, and how many requests are open on it."""

    http: Any
    open: int = 0


def _close(loop: asyncio.AbstractEventLoop, client: Any) -> None:
    loop.create_task(client.aclose())


class Line:
    """A line to one server, on which any number of requests may be open at a time.

    `key` goes into the Authorization header and nowhere else: where a server repeats it, `blot` it
    out. Raises ConfigError for an address or a key that will not do, InputError for a library that
    is missing.
    """

    def __init__(self, base_url: str, key: str, what: str = "base-url") -> None:
        self.base_url = check_base_url(base_url, what)
        if not (key.isascii() and key.isprintable()):  # else an error would show it
            raise ConfigError("The key is not plain ASCII.", "Copy it again, alone.")
        self._key, self._spellings = key, spellings(key)
        self.http, self.tenacity = libraries()
        self._verify: Any = None
        self._clients: weakref.WeakKeyDictionary[Any, list[_Client]]
        self._clients = weakref.WeakKeyDictionary()

    @property
    def has_key(self) -> bool:
        """Whether one is sent."""
        return bool(self._key)

    def _client(self) -> _Client:
        """A client of this event loop with a place, the first of several: whatever httpx2 does, it
        looks at all connections of a client, so each has few."""
        clients = self._clients.setdefault(asyncio.get_running_loop(), [])
        for client in clients:
            if client.open < _EACH:
                return client
        if self._verify is None:  # reading the certificates takes a while
            secure = self.base_url.startswith("https")
            self._verify = self.http.create_ssl_context() if secure else False
        # Its own timeouts are for each read: a server that sends a byte now and then has forever.
        # Whoever asks bounds the whole.
        clients.append(
            _Client(
                self.http.AsyncClient(
                    headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                    timeout=self.http.Timeout(None, connect=20.0),
                    limits=self.http.Limits(max_connections=_EACH),
                    verify=self._verify,
                )
            )
        )
        return clients[-1]

    @asynccontextmanager
    async def open(self, method: str, path: str, payload: Any = None) -> AsyncIterator[Any]:
        """A response whose body is still to be read. `path` goes behind the base address; with a /
        in front it takes the place of its /v1."""
        root = self.base_url.removesuffix("/v1")
        url = root + path if path.startswith("/") else f"{self.base_url}/{path}"
        kwargs = {} if payload is None else {"json": payload}
        client = self._client()
        client.open += 1
        try:
            async with client.http.stream(method, url, **kwargs) as response:
                yield response
        finally:
            client.open -= 1

    async def ask(self, path: str, payload: Any = None, method: str = "") -> tuple[int, Any, str]:
        """The status, the headers and the body, no more of it than MAX_BODY. Raises what httpx2
        raises."""
        method = method or ("GET" if payload is None else "POST")
        async with self.open(method, path, payload) as response:
            return response.status_code, response.headers, await self.body(response)

    async def body(self, response: Any) -> str:
        """What is in a response, no more of it than MAX_BODY."""
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_BODY:
                break
        return body.decode("utf-8", "replace")

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        for client in self._clients.pop(asyncio.get_running_loop(), []):
            await client.http.aclose()

    def close(self) -> None:
        """Close the connections of all event loops that still run, from whatever thread."""
        for loop, clients in list(self._clients.items()):
            with suppress(RuntimeError):  # it does not run any more
                for each in clients:
                    loop.call_soon_threadsafe(_close, loop, each.http)
        self._clients.clear()

    def broke(self, error: Exception) -> Passing:
        """What an error of httpx2 is: a connection that broke, a body that cannot be decoded."""
        broke = "the connection broke: " * isinstance(error, self.http.TransportError)
        return Passing(self.blot(f"{broke}{type(error).__name__}: {error}"))

    def said(self, body: str) -> str:
        """What an error's body says, in short, without the key, of which none is cut in half."""
        return self.blot(explained(self.blot(body)))

    def blot(self, text: str) -> str:
        """A text without the key."""
        for spelling in self._spellings:
            text = text.replace(spelling, "***")
        return text


def spellings(key: str) -> list[str]:
    """How a server may repeat a key: as it is, in JSON, in an address, in base64; longest first."""
    if not key:
        return []
    spelled = {key, json.dumps(key)[1:-1], quote(key), quote(key, safe="")}
    spelled.add(base64.b64encode(key.encode("ascii")).decode("ascii").rstrip("="))
    return sorted(spelled, key=len, reverse=True)


def check_base_url(url: str, what: str = "base-url") -> str:
    """The address without what people paste along. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        secret = bool(parts.username or parts.password)
    except ValueError:
        usable, secret = False, False
    if secret:
        raise ConfigError(
            f"{what} holds a user name or password.", "Keys come from an environment variable."
        )
    if not usable or parts.query or parts.fragment:
        raise ConfigError(f"{what} is {url!r}.", 'Give one like "http://127.0.0.1:8000/v1".')
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")


def is_exposed(base_url: str) -> bool:
    """Would a key go to another machine unencrypted?"""
    parts = urlsplit(base_url)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def explained(body: str) -> str:
    """What an error's body says, in short."""
    try:
        found = json.loads(body)
        error = found.get("error", found.get("detail", found.get("message", found)))
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        text = body
    text = text if isinstance(text, str) else json.dumps(text)
    return cut(" ".join(text.split()), 300) or "no explanation"


def is_quota(body: str) -> bool:
    """OpenAI answers 429 also where the account is empty; waiting does not fill it."""
    return "insufficient_quota" in body


def retry_after(headers: Any) -> float | None:
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


def count(value: Any) -> int | None:
    """A number of tokens, None for what is none, or more than anybody reads."""
    return value if type(value) is int and 0 <= value < 2**31 else None


def usage_of(found: Any) -> tuple[int | None, int | None, int | None]:
    """Of a reply: tokens of its prompt, of what was written, and of the prompt that were cached;
    None where the server does not count them."""
    usage = found.get("usage") if isinstance(found, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    return (
        count(usage.get("prompt_tokens")),
        count(usage.get("completion_tokens")),
        count(details.get("cached_tokens")),
    )
