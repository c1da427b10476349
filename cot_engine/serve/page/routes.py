"""The addresses of the page.

GET  /                            the page; its style and script are below /ui/static/
POST /ui/searches                 a question, as JSON with its pictures in base64 -> {"id"}
GET  /ui/searches/{id}/events     the search as it is drawn (`watch.pieces`), from its beginning
POST /ui/searches/{id}/cancel     stop it
GET  /ui/searches/{id}/page.html  what was found, as one file

Searches go through the same desk as those of the API, with the same keys, limits and errors.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import AsyncIterator
from functools import cache, partial
from importlib import resources

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from cot_engine.core.trace import Trace
from cot_engine.engine.thread import in_thread
from cot_engine.errors import ImageError
from cot_engine.escape import visible
from cot_engine.images.load import Image, load_image
from cot_engine.search.budget import parse_budget
from cot_engine.serve.app import client_of, json
from cot_engine.serve.desk import Desk
from cot_engine.serve.failures import Refused
from cot_engine.serve.page import form
from cot_engine.serve.page.watch import Watched, pieces
from cot_engine.serve.schema import Scalar, Strict
from cot_engine.serve.stream import EventStream
from cot_engine.serve.ticket import Ticket
from cot_engine.show.html import render_html
from cot_engine.show.templates import environment, render

PUBLIC = ("/", "/ui/static/")
"""What is read without a key: nothing of anybody's."""
HEADERS = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "style-src-attr 'unsafe-inline'",  # where lines of a bracket lie: numbers of ours
            "img-src 'self' data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types drawing",
        ]
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_NAME = 200  # characters of a file's name that are kept


class Given(Strict):
    """A picture: the name of its file, and its bytes in base64."""

    name: str = ""
    data: str


class Ask(Strict):
    """A question, its pictures, and how to search."""

    question: str
    pictures: list[Given] = Field(default_factory=list)
    strategy: str | None = None
    parameters: dict[str, Scalar] | None = None
    judge: str | None = None
    budget: str | None = None
    seed: int | None = None


def router() -> APIRouter:
    """The page's routes, for `app.make_app`."""
    watched = Watched()

    async def ask(request: Request, body: Ask) -> Response:
        desk: Desk = request.app.state.desk
        options = body.model_dump(exclude={"question", "pictures"}, exclude_none=True)
        pictures = [partial(_picture, desk, each) for each in body.pictures]
        async with request.app.state.reading:
            ticket = await desk.open(client_of(request), pictures, body.question, options)
        watched.look(ticket)
        watched.leave(ticket)
        return json({"id": ticket.id})

    async def events(request: Request, id: str) -> Response:
        return _Watching(_ticket(request, id), watched)

    found = APIRouter(include_in_schema=False)
    found.get("/")(page)
    found.get("/ui/static/{name}")(static)
    found.post("/ui/searches")(ask)
    found.get("/ui/searches/{id}/events")(events)
    found.post("/ui/searches/{id}/cancel")(cancel)
    found.get("/ui/searches/{id}/page.html")(share)
    return found


async def page(request: Request) -> Response:
    """The page itself."""
    desk: Desk = request.app.state.desk
    shown = await in_thread(lambda: _page(desk, request.app.state.served))
    return Response(shown.encode("utf-8", "backslashreplace"), 200, HEADERS, "text/html")


async def static(request: Request, name: str) -> Response:
    """Its style or its script."""
    if name not in _STATIC:
        raise Refused(404, "There is nothing at this address.", "not_found")
    kind, text = _static(name)
    own = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(text, 200, own, kind)


async def cancel(request: Request, id: str) -> Response:
    """Stop a search; one that is over stays as it is."""
    _ticket(request, id).cancel()
    return json({"id": id})


async def share(request: Request, id: str) -> Response:
    """What was found so far, as one file that needs nothing else."""
    trace = _ticket(request, id).trace
    if not isinstance(trace, Trace):
        raise Refused(404, "Nothing of this search has happened yet.", "not_found")
    shown = await in_thread(lambda: render_html(trace))
    own = {"Content-Disposition": f'attachment; filename="{id}.html"'}
    return Response(shown.encode("utf-8", "backslashreplace"), 200, own, "text/html")


class _Watching(EventStream):
    """The pieces of a search. Who looks away does not stop it at once."""

    def __init__(self, ticket: Ticket, watched: Watched) -> None:
        super().__init__(ticket, _looked_at(ticket, watched), watches=True)


async def _looked_at(ticket: Ticket, watched: Watched) -> AsyncIterator[bytes]:
    watched.look(ticket)
    try:
        async for piece in pieces(ticket):
            yield piece
    finally:
        watched.leave(ticket)


def _ticket(request: Request, id: str) -> Ticket:
    """The search of that id. Raises Refused if there is none, or it is somebody else's."""
    desk: Desk = request.app.state.desk
    ticket = desk.ticket(id)
    if ticket is None or ticket.client != client_of(request):
        raise Refused(404, "There is no such search, or no more.", "not_found")
    return ticket


def _picture(desk: Desk, given: Given) -> Image:
    """Raises ImageError."""
    name = visible(given.name[:_NAME]) or "picture"
    try:
        data = binascii.a2b_base64(given.data.encode("ascii"), strict_mode=True)
    except ValueError as error:
        raise ImageError(f"{name} did not arrive as base64: {error}.", "Send it again.") from None
    try:
        image = load_image(data, max_pixels=desk.limits.pixels)
    except ImageError as error:
        said = error.message.replace("The image given as bytes", f"The picture {name!r}")
        raise ImageError(said, error.hint) from None
    return Image(image.pixels, image.digest, name, image.notes)


# --- the files -----------------------------------------------------------------------------------


def _page(desk: Desk, served: str) -> str:
    limits, config = desk.limits, desk.config
    return render(
        "serve/page/page.html.jinja",
        served=served,
        most_pictures=min(limits.pictures, desk.engine.backend.info.max_images),
        most_bytes=limits.upload,
        strategies=form.strategies(config),
        judges=form.judges(config),
        units=form.UNITS,
        budget=parse_budget(config.budget) if config.budget else None,
        most_budget=limits.allowance.budget or "",
        most_n=limits.allowance.n,
        version=_version(),
    )


_STATIC = {"page.css": "text/css", "page.js": "text/javascript"}


@cache
def _static(name: str) -> tuple[str, str]:
    """The type and text of one. The style is that of drawings, and more."""
    if name == "page.css":
        text = environment().get_template("serve/page/page.css.jinja").render()
    else:
        text = resources.files("cot_engine.serve.page").joinpath(name).read_text("utf-8")
    return _STATIC[name], text


@cache
def _version() -> str:
    """Changes with what is in the files, so that a browser may keep them."""
    texts = "".join(_static(name)[1] for name in sorted(_STATIC))
    return hashlib.sha256(texts.encode()).hexdigest()[:12]
