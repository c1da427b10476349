"""What stands before the application: who may ask at all, how much may be sent, what is written of
it in the log, and the headers of every response.

Nothing of a request's body is read before its host, origin and key are found in order; and of all
bodies together no more is held than was allowed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

from cot_engine.errors import readable
from cot_engine.serve.failures import SERVER, Refused, answered
from cot_engine.serve.keys import Keys

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOG = logging.getLogger("cot_engine.access")
READ_SECONDS = 60.0
"""For a whole body to arrive. Whoever is slower holds a place among uploads that others need."""
_CSP = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none';"
    " frame-ancestors 'none'; form-action 'self'"
)
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": _CSP.encode(),
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """An ASGI application around another.

    `hosts` are the names that a request may have in its Host header, any if there are none: on the
    loopback a page elsewhere could else ask under its own name (DNS rebinding). `public` are paths,
    or beginnings of paths that end in "/", that need no key. `told` hears path and status of each.
    """

    def __init__(
        self,
        app: Any,
        *,
        keys: Keys | None = None,
        hosts: Iterable[str] = (),
        public: Iterable[str] = ("/health",),
        upload: int = 32_000_000,
        uploads: int = 256_000_000,
        told: Callable[[str, int], None] | None = None,
    ) -> None:
        self.app, self.keys = app, keys or Keys()
        self.hosts, self.public = frozenset(hosts), tuple(public)
        self.upload, self.uploads = upload, uploads
        self.told = told
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await _Exchange(self, scope, receive, send).run()

    # --- what is checked -------------------------------------------------------------------------

    def check(self, path: str, headers: dict[bytes, bytes], address: str) -> str:
        """Who asks: the name of a key, or an address. Raises Refused."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts and _name(host) not in self.hosts:
            raise Refused(
                421,
                f"This server is not called {host!r}. Ask for {' or '.join(sorted(self.hosts))}.",
                "wrong_host",
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and urlsplit_netloc(origin) != host.lower():
            raise Refused(
                403,
                "Pages of another origin may not ask here. A program sends no Origin.",
                "cross_origin",
            )
        if not self.keys or self._is_public(path):
            return address
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        client = self.keys.client(key.strip()) if scheme.lower() == "bearer" else None
        if client is None:
            said = "There is no such API key." if key else "An API key is missing."
            raise Refused(
                401,
                f"{said} Send it as: Authorization: Bearer KEY (api_key of OpenAI's clients).",
                "invalid_api_key",
                www_authenticate="Bearer",
            )
        return client

    def _is_public(self, path: str) -> bool:
        return any(
            path == each or (each.endswith("/") and len(each) > 1 and path.startswith(each))
            for each in self.public
        )

    def check_room(self, more: int, own: int = 0) -> None:
        """Whether so many more bytes of a body, of which its `own` are held, may be held too.
        Raises Refused."""
        if own + more > self.upload:
            raise self.too_large(
                f"more than {self.upload:,} bytes" if own else f"{more:,} bytes",
            )
        if self._held + more > self.uploads and self._held > own:
            raise Refused(
                429,
                f"Requests of {self._held:,} bytes are being read already. Ask again in a moment.",
                "uploads_full",
                "rate_limit_error",
                retry_after="1",
            )

    def hold(self, size: int) -> None:
        self._held += size

    def release(self, size: int) -> None:
        self._held -= size

    def too_large(self, size: str) -> Refused:
        return Refused(
            413,
            f"The request has {size}; the most is {self.upload:,}. Send smaller pictures.",
            "too_large",
        )


class _Exchange:
    """One request and its response."""

    def __init__(self, guard: Guard, scope: Any, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self.receive, self.send = guard, scope, receive, send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.status, self.sent, self.held = 0, 0, 0
        self.body: bytes | None = None
        self.client = (scope.get("client") or ("?",))[0]

    async def run(self) -> None:
        begun = time.perf_counter()
        try:
            if await self._let_in():
                await self.guard.app(self.scope, self._receive, self._send)
        except Exception as error:
            failed = answered(error)  # which writes down a defect
            if not self.status:  # else it was answered, or broken off: nothing more can be said
                await failed(self.scope, self.receive, self._send)
        finally:
            self._release()
            self._log(time.perf_counter() - begun)

    async def _let_in(self) -> bool:
        """Check it and read its body. False if who asked has gone."""
        guard, scope = self.guard, self.scope
        try:
            self.client = guard.check(scope["path"], self.headers, self.client)
            scope.setdefault("state", {})["client"] = self.client
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                self.body = b""
                return True
            guard.check_room(_length(self.headers))
            self.body = await self._read()
        except Refused as refused:
            await answered(refused)(scope, self.receive, self._send)
            return False
        except TimeoutError:
            late = Refused(408, "The request did not arrive within a minute.", "late", SERVER)
            await answered(late)(scope, self.receive, self._send)
            return False
        return self.body is not None

    async def _read(self) -> bytes | None:
        """The whole body; None if it will not come. What has arrived of it is held, not what was
        promised: who promises much and sends little would else keep all others out."""
        parts = []
        async with asyncio.timeout(READ_SECONDS):
            while True:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size = len(parts[-1])
                self.guard.check_room(size, self.held)
                self.guard.hold(size)
                self.held += size
                if not message.get("more_body"):
                    return b"".join(parts)

    async def _receive(self) -> Message:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self.receive()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._release()
            self.status = message["status"]
            own = {name.lower() for name, _ in message.get("headers", ())}
            more = [(name, value) for name, value in _HEADERS.items() if name not in own]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        else:
            self.sent += len(message.get("body", b""))
        await self.send(message)

    def _release(self) -> None:
        self.guard.release(self.held)
        self.held = 0

    def _log(self, seconds: float) -> None:
        """One line: who, what, how it went. Nothing that was asked or answered."""
        route = self.scope.get("route")
        # An address may hold anything, line breaks too: percent-encoded it is one word.
        asked = quote(self.scope["path"][:200], errors="backslashreplace")
        path = getattr(route, "path", None) or asked
        if self.guard.told is not None:
            self.guard.told(getattr(route, "path", None) or "other", self.status)
        if LOG.isEnabledFor(logging.INFO):
            said = f"{self.client} {self.scope['method']} {path} {self.status or 'gone'}"
            LOG.info("%s", readable(f"{said} {seconds * 1000:.0f} ms {self.sent:,} bytes"))


def _length(headers: dict[bytes, bytes]) -> int:
    """What a body says that it has, 0 if it does not."""
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() else 0


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def urlsplit_netloc(origin: str) -> str:
    """The host and port of an origin, "" for one that has none ("null")."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
