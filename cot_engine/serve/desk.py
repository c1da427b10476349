"""Who may search, when, and what became of it. No HTTP in it.

All searches share the engine's batches. A desk gives out as many places as the engine runs at once,
fairly among clients (`turns.py`), holds what a client may still spend (`quota.py`), and keeps what
was found (`shelf.py`). Everything happens in the event loop in which it is used; the searches
themselves run in the engine's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cot_engine import plugins
from cot_engine.core.problem import Problem
from cot_engine.core.stages import Plan
from cot_engine.core.usage import Usage
from cot_engine.engine.facade import Engine
from cot_engine.engine.thread import handing_over, in_thread
from cot_engine.errors import ConfigError, CotEngineError, ImageError, InputError, shown
from cot_engine.images.load import Image, load_image
from cot_engine.judging.profile import Profile
from cot_engine.options.config import RunConfig
from cot_engine.options.problem import check_number_of_images, check_question, problem_of
from cot_engine.options.resolve import Resolved, resolve
from cot_engine.serve.limits import Limits
from cot_engine.serve.quota import Quota, granted
from cot_engine.serve.shelf import Shelf
from cot_engine.serve.ticket import Cancelled as Cancelled
from cot_engine.serve.ticket import Ticket, pixels
from cot_engine.serve.turns import Turns

Picture = bytes | str | Image | Callable[[], Image]
"""The bytes of an image file, an http(s) URL (where `Limits.allow_url` allows it), an Image, or
what reads one, called in a thread. No path: whoever asks is not who owns the files here."""

_log = logging.getLogger("cot_engine.serve")
_NOT_HERE = ("allow_url",)  # options of a call that are the server's to set


class Busy(CotEngineError):
    """There is no room, or nothing left to spend. `retry_after` says in how many seconds there may
    be, `why` which: the desk is "closing", the queue "full", or the client's total "spent"."""

    def __init__(self, message: str, hint: str, retry_after: float, why: str = "full") -> None:
        super().__init__(message, hint)
        self.retry_after, self.why = max(1, math.ceil(retry_after)), why


class Late(CotEngineError):
    """A search took longer than one may."""


class Desk:
    """Takes searches in, gives them places, and keeps what became of them.

    `config` has the options of searches that do not name their own. `on_over` are called with each
    ticket that is over.
    """

    def __init__(
        self, engine: Engine, limits: Limits | None = None, config: RunConfig | None = None
    ) -> None:
        self.engine, self.limits = engine, limits or Limits()
        self.config = config or RunConfig()
        self.places = engine.in_flight
        self.turns: Turns[Ticket] = Turns(self.limits.queue)
        self.quota = Quota()
        self.shelf = Shelf(self.limits.traces, self.limits.trace_bytes, self.limits.folder)
        self.on_over: list[Callable[[Ticket], None]] = []
        self.closing = False
        self._running: dict[Ticket, asyncio.Task[None]] = {}
        self._tickets: dict[str, Ticket] = {}  # that wait, run, or are not on the shelf yet
        self._held = 0  # pixels
        self._pace = 1.0  # seconds that a search took of late
        self._putting: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many searches wait for a place."""
        return len(self.turns)

    @property
    def running(self) -> int:
        """How many searches have a place."""
        return len(self._running)

    async def open(
        self,
        client: str,
        pictures: Sequence[Picture] | Problem,
        question: str | None,
        options: dict[str, Any],
    ) -> Ticket:
        """Take a search in. `options` are those of `Engine.solve`, a `strategy` and a `judge` by
        name. Its seed, plan and budget decide what is found, whoever else asks.

        Raises Busy if there is no room or nothing left to spend, ConfigError and UnknownNameError
        for options, InputError and ImageError for what is asked.
        """
        self._check_room(0)
        if self._full and not self.turns.has_room(client):
            raise self._busy()  # before pictures are read in vain
        call = self._resolved(client, options)
        problem = await self._problem(pictures, question)
        try:
            self._check_room(0)  # others came while the pictures were read
            allowance = self.limits.of(client)
            if (wait := self.quota.hold(_account(client), allowance, call.budget)) is not None:
                raise Busy(
                    f"{call.budget} are not left of the {allowance.total} that may be spent in"
                    f" {allowance.per:g} seconds.",
                    "Wait, or ask with a smaller budget.",
                    *(wait, "spent"),
                )
        except BaseException:
            self._held -= pixels(problem)
            raise
        ticket = Ticket(client, problem, options, call, self._cancel)
        self._tickets[ticket.id] = ticket
        if not self._full:
            self.turns.seat(client)
            self._begin(client, ticket)
        elif (out := self.turns.put(client, ticket)) is not None:
            error = self._busy()
            self._over(out, None, error)
            if out is ticket:
                raise error
        return ticket

    def ticket(self, id: str) -> Ticket | None:
        """A search that waits or runs, or of which the trace is still kept in memory."""
        return self._tickets.get(id) or self.shelf.get(id)

    async def trace(self, client: str, id: str) -> bytes | None:
        """The trace of a client's search, as its file; None if there is none, or no more. Raises
        TraceError if it cannot be read."""
        ticket = self.ticket(id)
        if ticket is not None and ticket.client == client:
            return await in_thread(ticket.lines)
        return await in_thread(lambda: self.shelf.read(client, id))

    async def close(self, grace: float | None = None) -> None:
        """Take nothing in any more, hand back what waits, and let what runs end within `grace`
        seconds (`Limits.grace`); what does not is handed back too. It can be called twice: a
        shorter grace then counts."""
        self.closing = True
        for ticket in self.turns.clear():
            self._over(ticket, None, self._busy())
        grace = self.limits.grace if grace is None else grace
        if self._running and grace > 0:
            await asyncio.wait(list(self._running.values()), timeout=grace)
        left = list(self._running.values())
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        if self._putting:
            await asyncio.wait(list(self._putting))

    # --- taking in ---

    def _resolved(self, client: str, options: dict[str, Any]) -> Resolved:
        """The options as parts, within what the client may spend. Raises ConfigError."""
        for key in _NOT_HERE:
            if key in options:
                raise ConfigError(f"{key} is the server's to set.", "Leave it out.")
        for key in ("strategy", "judge"):  # objects would do for the engine
            if not isinstance(options.get(key, ""), str):
                raise ConfigError(f"{key} is {shown(options[key])}.", "Give its name.")
        self._own_verifiers(options.get("judge"))
        if "plan" in options and not isinstance(options["plan"], Plan):
            raise ConfigError(
                f"plan is {shown(options['plan'])}.", "A path names nothing here: give its stages."
            )
        allowance = self.limits.of(client)
        budget = granted(allowance, options.get("budget"), self.config.budget)
        options = {**options, "budget": budget}
        call = resolved_within(self.engine.profile, self.config, options, allowance.n)
        part = call.strategy.part
        own = {self.config.parameters.get(key) for key in ("verifier", "scorer")}
        named = {getattr(part, key, None) for key in ("verifier", "scorer")}
        self._own_verifiers(*(named - own))
        return call

    def _own_verifiers(self, *names: Any) -> None:
        """Raises ConfigError for a verifier that would open a file or a model, or ask an address,
        that a client chose."""
        for name in names:
            if isinstance(name, str) and name != self.config.judge and plugins.reaches_out(name):
                raise ConfigError(
                    f"The verifier {shown(name)} is not for a client to name.",
                    "Name one of the server's: its own judge, or a recipe without parameters.",
                )

    async def _problem(
        self, pictures: Sequence[Picture] | Problem, question: str | None
    ) -> Problem:
        """What is asked, whose pixels are held from here on: from when each picture is read, or
        those of all who ask at once would be there before anybody counted them."""
        if isinstance(pictures, Problem):
            problem = problem_of(pictures, question, False)
            check_number_of_images(problem, self.engine.backend.info)
            self._check_room(pixels(problem))
            self._held += pixels(problem)
            return problem
        asked, most = check_question(question), self.limits.pictures
        if len(pictures) > most:
            raise InputError(
                f"There are {len(pictures)} pictures; the most is {most}.", "Send fewer."
            )
        images: list[Image] = []
        held = 0
        try:
            for each in pictures:
                images.append(await in_thread(partial(self._image, each)))
                width, height = images[-1].size
                self._check_room(width * height, held)
                self._held += width * height
                held += width * height
            problem = await in_thread(lambda: problem_of(images, asked, False))
            check_number_of_images(problem, self.engine.backend.info)
        except BaseException:
            self._held -= held
            raise
        return problem

    def _image(self, picture: Picture) -> Image:
        """One picture. Raises ImageError."""
        if callable(picture):
            return picture()
        if isinstance(picture, str):
            if not self.limits.allow_url:
                raise ImageError(
                    f"A picture is {shown(picture)}; none are fetched here.", "Send its data."
                )
            if not picture.startswith(("http://", "https://")):  # a path of this machine
                raise ImageError(f"A picture is {shown(picture)}.", "Send its data.")
        return load_image(picture, allow_url=self.limits.allow_url, max_pixels=self.limits.pixels)

    def _check_room(self, more: int, own: int = 0) -> None:
        """Raises Busy where a search with so many more pixels, besides its `own`, could not wait.
        One that is alone may have as many as it may send."""
        if self.closing:
            raise self._busy()
        if more and self._held > own and self._held + more > self.limits.held:
            raise self._busy(f"pictures of {self._held:,} pixels are being worked on")

    def _busy(self, why: str = "") -> Busy:
        if self.closing:
            return Busy("The server is closing.", "Ask again, or ask another.", 5, "closing")
        wait = self._pace * (self.waiting + 1) / self.places
        said = why or f"{self.running} searches are running and {self.waiting} wait"
        return Busy(f"There is no room: {said}.", "Ask again in a moment.", min(60, wait), "full")

    # --- giving places ---

    @property
    def _full(self) -> bool:
        return self.running >= self.places or self.closing

    def _begin(self, client: str, ticket: Ticket) -> None:
        ticket.begin()
        self._running[ticket] = asyncio.get_running_loop().create_task(self._run(client, ticket))

    def _next(self) -> None:
        while not self._full and (found := self.turns.take()) is not None:
            self._begin(*found)

    async def _run(self, client: str, ticket: Ticket) -> None:
        """One search, in its place."""
        loop = asyncio.get_running_loop()
        begun, answer = loop.time(), None
        error: BaseException | None = None
        try:
            async with asyncio.timeout(self.limits.seconds):
                answer = await self.engine.asolve(
                    ticket.problem, config=ticket.call, on_event=handing_over(ticket.hear)
                )
        except TimeoutError:
            error = Late(
                f"The search was stopped after {self.limits.seconds:g} seconds, the most here.",
                "Ask for fewer candidates, or with a budget.",
            )
        except asyncio.CancelledError:
            error = self._busy() if self.closing else Cancelled("The search was cancelled.")
        except BaseException as raised:
            error = raised
        ticket.seconds = loop.time() - begun
        self._pace += (ticket.seconds - self._pace) / 8
        del self._running[ticket]
        self.turns.leave(client)
        self._over(ticket, answer, error)
        self._next()

    def _cancel(self, ticket: Ticket) -> None:
        if task := self._running.get(ticket):
            task.cancel()
        elif self.turns.remove(ticket.client, ticket):
            self._over(ticket, None, Cancelled("The search was cancelled before it began."))

    def _over(self, ticket: Ticket, answer: Any, error: BaseException | None) -> None:
        began = ticket.state == "running"
        known = not (began and isinstance(error, (Cancelled, Late)))
        used = sum(ticket.usage.values(), Usage()) if known else None
        self.quota.settle(_account(ticket.client), ticket.call.budget, used, ticket.seconds)
        self._held -= pixels(ticket.problem)
        ticket.end(answer, error)
        for listen in self.on_over:
            listen(ticket)
        if not began:
            del self._tickets[ticket.id]
            return
        putting = asyncio.get_running_loop().create_task(self._put(ticket))
        self._putting.add(putting)
        putting.add_done_callback(self._putting.discard)

    async def _put(self, ticket: Ticket) -> None:
        """Onto the shelf. A folder that cannot be written to costs nobody an answer."""
        try:
            lines = await in_thread(ticket.lines)
            ticket.settle(lines)
            try:
                await in_thread(lambda: self.shelf.write(ticket.client, ticket.id, lines))
            except CotEngineError as error:
                _log.error("%s", error)
            self.shelf.put(ticket, len(lines))
        finally:
            del self._tickets[ticket.id]


def _account(client: str) -> str:
    """Who pays: an address, whichever of its users asks."""
    return client.partition("/")[0]


def resolved_within(
    profile: Profile, config: RunConfig, options: dict[str, Any], most: int
) -> Resolved:
    """A call's options as parts. Raises ConfigError for more than `most` candidates of a selection;
    where "auto" chose so many, it is as many as there may be."""
    call = resolve(profile, config, options)
    own = options.get("parameters", {} if "strategy" in options else config.parameters)
    named = "n" in own or "n" in options
    if call.notes and not named and getattr(call.strategy.part, "n", 0) > most:
        # Nobody asked for so many: the profile did, which does not know who may ask for what.
        call = resolve(profile, config, {**options, "parameters": {**own, "n": most}})
    check_widths(call, most)
    return call


def check_widths(call: Resolved, most: int) -> None:
    """Raises ConfigError for more candidates of a selection than there may be."""
    widths = {name: getattr(call.strategy.part, name, None) for name in ("n", "keep")}
    widths |= {f"the width of {stage.tag}": stage.width for stage in call.plan}
    for name, value in widths.items():
        if isinstance(value, int) and value > most:
            raise ConfigError(f"{name} is {value}; the most here is {most}.", "Ask for fewer.")
