"""Asking a server until it answers, or is found to be gone: retries for what passes by itself, one
total deadline, and no connection left open for an answer that nobody wants any more."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from typing import Any

from cot_engine.backends.server.http import (
    MAX_BODY,
    TRANSIENT,
    Line,
    Passing,
    is_quota,
    retry_after,
)
from cot_engine.backends.server.written import Garbage, Refused, Written, parsed
from cot_engine.errors import BackendGone, InputError, ModelError

CHAT = "chat/completions"
FIRST_WAIT = 0.25
"""Seconds before the first retry where the server names none; doubled with each."""
LONGEST = 8.0
_ALIVE = 5.0  # seconds in which a server says that it is there


class Asking:
    """One server, asked over `line`. At most `most` requests are open at a time.

    What passes by itself is asked again, `retries` times; a server whose queue is full (429) for as
    long as it takes. After `timeout` seconds, retries and waiting included, it is over. Raises from
    each method: BackendGone where the server is, InputError for a request that it will not have,
    ModelError for any other failure.
    """

    def __init__(self, line: Line, most: int, timeout: float, retries: int) -> None:
        self.line, self.most, self.timeout, self.retries = line, most, timeout, retries
        self.open = 0
        self._places: weakref.WeakKeyDictionary[Any, asyncio.Semaphore]
        self._places = weakref.WeakKeyDictionary()

    async def written(self, payload: dict[str, Any], make: Callable[[], Written]) -> Written:
        """What the server writes; `make` gives what each attempt is read into."""

        async def once() -> Written:
            into = make()
            async with self.line.open("POST", CHAT, payload) as response:
                await self._check(response)
                if "text/event-stream" in response.headers.get("content-type", ""):
                    await self._events(response, into)
                else:
                    into.whole(self.line.blot(await self.line.body(response)))
            return into

        return await self._until_answered(once)

    async def value(self, path: str, payload: Any = None) -> dict[str, Any]:
        """The object that the server answers with."""

        async def once() -> dict[str, Any]:
            method = "GET" if payload is None else "POST"
            async with self.line.open(method, path, payload) as response:
                await self._check(response)
                return parsed(self.line.blot(await self.line.body(response)))

        return await self._until_answered(once)

    async def _events(self, response: Any, into: Written) -> None:
        """Read a stream of events, none of whose lines is longer than a reply may be."""
        size = 0
        async for line in response.aiter_lines():
            size += len(line)
            if size > MAX_BODY:
                raise Garbage(f"the reply has more than {MAX_BODY:,} bytes")
            if line.startswith("data:") and into.event(self.line.blot(line[5:]).strip()):
                return
        if not into.finish:
            raise Garbage("the reply broke off")

    async def _check(self, response: Any) -> None:
        """Raises for a status other than 200."""
        status = response.status_code
        if status == 200:
            return
        body = await self.line.body(response)
        said = f"HTTP {status}: {self.line.said(body)}"
        if status in TRANSIENT and not is_quota(body):
            raise Passing(said, retry_after(response.headers), status == 429)
        if status in (400, 413, 422):
            raise InputError(
                f"The server refuses this request ({said}).",
                "If it is too long: ask a shorter question, or give fewer or smaller pictures.",
            )
        if status in (401, 403):
            raise ModelError(f"The server at {self.line.base_url} will not have us ({said}).", _KEY)
        if 300 <= status < 400:
            where = response.headers.get("location", "unknown")
            raise ModelError(
                f"The server at {self.line.base_url} redirects to {self.line.blot(where)[:200]!r}.",
                "Give its own address.",
            )
        raise ModelError(f"The server at {self.line.base_url} does not answer ({said}).", _LOG)

    async def _until_answered(self, once: Callable[[], Any]) -> Any:
        places = self._places.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.most))
        async with places:
            self.open += 1
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.timeout):
                    return await self._retried(once, began)
            except TimeoutError:
                raise await self._hung() from None
            except Refused as error:
                said = self.line.blot(str(error))
                raise ModelError(
                    f"The server at {self.line.base_url} answered, but {said}.", _LOG
                ) from None
            finally:
                self.open -= 1

    async def _retried(self, once: Callable[[], Any], began: float) -> Any:
        attempts = 0
        tenacity = self.line.tenacity

        async def attempt() -> Any:
            try:
                return await once()
            except self.line.http.HTTPError as error:  # also a body that cannot be decoded
                raise self.line.broke(error) from None

        def tired(state: Any) -> bool:
            nonlocal attempts
            passing = state.outcome.exception()
            attempts += not passing.queued
            return attempts > self.retries

        def wait(state: Any) -> float:
            passing = state.outcome.exception()
            wait = passing.wait
            if wait is None:
                wait = tenacity.wait_exponential(FIRST_WAIT, LONGEST)(state)
                wait += tenacity.wait_random(0, FIRST_WAIT)(state)
            left = self.timeout - (time.monotonic() - began)
            if wait > left:
                raise ModelError(
                    f"The server at {self.line.base_url} asks to wait {wait:,.0f} s ({passing}); "
                    f"a request has {self.timeout:g} s in all.",
                    "Ask again later, or give it longer: timeout=SECONDS.",
                )
            return float(wait)

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Passing),
            stop=tired,
            wait=wait,
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except Garbage as error:
            raise ModelError(
                f"The server at {self.line.base_url} gave no reply that can be read, tried "
                f"{attempts} times: {self.line.blot(str(error))}.",
                _LOG,
            ) from None
        except Passing as error:
            raise BackendGone(
                f"The server at {self.line.base_url} does not answer, tried {attempts} times: "
                f"{self.line.blot(str(error))}.",
                "Is it running, and does its address usually end in /v1? " + _LOG,
            ) from None

    async def _hung(self) -> ModelError:
        """What it is that a request was not answered in time: the server, or the request."""
        said = f"The server at {self.line.base_url} gave no whole reply in {self.timeout:g} s"
        try:
            async with asyncio.timeout(_ALIVE):
                await self.line.ask("models")
        except (TimeoutError, self.line.http.HTTPError):
            return BackendGone(f"{said}, and says nothing to anything else.", _LOG)
        return ModelError(f"{said}.", "Give it longer (timeout=SECONDS), or fewer at a time.")


async def all_of(*work: Any) -> list[Any]:
    """Await all of it; if one fails, give up the others and raise its error."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


_LOG = "Its own log says more."
_KEY = (
    "Put its key into the environment variable COT_ENGINE_API_KEY, or name another: key_env=NAME."
)
