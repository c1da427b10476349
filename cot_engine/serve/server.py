"""The server in a process of its own: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cot_engine.errors import ConfigError
from cot_engine.serve.desk import Desk
from cot_engine.serve.failures import INVALID, as_json, body
from cot_engine.serve.guard import LOG, LOOPBACK, Guard

AFTER = 5.0
"""Seconds that responses may take to be sent once their searches have ended."""


AT_ONCE = 0.5
"""Seconds that those who wait have to be told, where a second signal ends it at once."""
HEAD_SECONDS = 30.0
"""For the head of a request to arrive, and the longest that a connection may be idle."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening(host: str, port: int) -> socket.socket:
    """The socket at this address, 0 for any free port. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(256)
        except BaseException:
            made.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{host}:{port} cannot be listened at: {reason}.",
            "Choose another --port, 0 for any that is free, or another --host.",
        ) from None
    return made


def address_of(host: str, port: int) -> str:
    """The address as a client writes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Prompt(H11Protocol):
    """A connection on which a request's head arrives within HEAD_SECONDS, or it is closed: whoever
    opens many and sends nothing would else keep others out."""

    _timer: asyncio.TimerHandle | None = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered as every other error is."""
        head = [(b"content-type", b"application/json"), (b"connection", b"close")]
        told = as_json(body(msg, INVALID, "invalid_http"))
        for event in (
            h11.Response(status_code=400, headers=head, reason=b"Bad Request"),
            h11.Data(data=told),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """Ends gracefully by the first SIGTERM or SIGINT, and at once by the second.

    Gracefully: nothing is taken in any more, what waits is handed back with 503 and Retry-After,
    and what runs has `Limits.grace` seconds to end before it is handed back, too.
    """

    def __init__(self, app: Guard, desk: Desk, say: Callable[[str], object]) -> None:
        config = uvicorn.Config(
            app,
            http=Prompt,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # whoever asks could else say who it is
            timeout_keep_alive=int(HEAD_SECONDS),
            timeout_graceful_shutdown=int(desk.limits.grace + AFTER) + 1,
        )
        super().__init__(config)
        self.desk, self.say = desk, say
        self._closing: asyncio.Task[None] | None = None
        self._again: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which raises the signal again when all is done: a server that was
        asked to end, and did, has not failed."""
        loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        try:
            for each in signals:
                loop.add_signal_handler(each, self.stop)
        except (NotImplementedError, ValueError, RuntimeError):  # Windows, or not the main thread
            yield
            return
        try:
            yield
        finally:
            for each in signals:
                loop.remove_signal_handler(each)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is open, then let be written what the desk keeps."""
        await super().shutdown(sockets)
        if self._again is not None:  # who waits still hears that it was handed back
            await asyncio.wait([self._again], timeout=AT_ONCE)
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=AT_ONCE)
        elif self._closing is not None:
            await asyncio.wait([self._closing])

    def stop(self) -> None:
        """End gracefully; called again, at once."""
        if self._closing is not None:
            self.force_exit = True
            self._closing.cancel()
            self._again = self._again or asyncio.create_task(self.desk.close(0))
            return
        running, waiting = self.desk.running, self.desk.waiting
        self.say(
            f"Closing: {running} running searches have {self.desk.limits.grace:g} seconds to end,"
            f" {waiting} that wait are handed back. Once more ends at once."
        )
        self._closing = asyncio.create_task(self.desk.close())
        self.should_exit = True


def serve(
    app: Guard,
    desk: Desk,
    at: socket.socket,
    say: Callable[[str], object],
    quiet: bool = False,
) -> None:
    """Serve until a signal ends it. `say` hears what the operator should know. Raises
    KeyboardInterrupt where a second one ended it at once."""
    logs(quiet)
    server = Server(app, desk, say)
    server.run(sockets=[at])
    if server.force_exit:
        raise KeyboardInterrupt("Ended at once.")


def logs(quiet: bool) -> None:
    """The access log, and what uvicorn reports of failures, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    level: dict[str, Any] = {
        LOG.name: logging.WARNING if quiet else logging.INFO,
        "cot_engine.serve": logging.WARNING,
        "uvicorn.error": logging.CRITICAL,  # of a client that broke off; ours are logged by us
    }
    for name, least in level.items():
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(least)
