"""The HTTP application: OpenAI's endpoints, health, metrics and traces.

POST /v1/chat/completions     a question; "stream": true for its thoughts as they are decided
GET  /v1/models               the model, and it with each strategy
GET  /v1/traces/{id}          the trace of a search, as JSON lines; ?html as a page
GET  /health, /metrics, /openapi.json
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cot_engine import __version__, plugins
from cot_engine.core.trace import Trace
from cot_engine.engine.thread import in_thread
from cot_engine.errors import CotEngineError
from cot_engine.serve.asked import asked, strategy_of
from cot_engine.serve.desk import Desk
from cot_engine.serve.failures import Refused, as_json, on_error, on_http, on_invalid
from cot_engine.serve.guard import Guard
from cot_engine.serve.keys import Keys
from cot_engine.serve.metrics import CONTENT, Metrics
from cot_engine.serve.schema import ChatRequest, ErrorBody
from cot_engine.serve.stream import EventStream, attended, begun, chunks
from cot_engine.serve.told import reply

_READING = 8
"""Questions read at a time: each takes a thread, and its pictures are held twice meanwhile."""
# What a page of a trace has: its own style, its pictures, and nothing else.
_PAGE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}


def make_app(
    desk: Desk,
    served: str = "bundled",
    *,
    keys: Keys | None = None,
    hosts: Iterable[str] = (),
    routers: Iterable[APIRouter] = (),
    public: Iterable[str] = ("/health",),
) -> Guard:
    """The application for a desk whose model is called `served`.

    `routers` have further routes, `public` are paths that need no key (`Guard`). The endpoints use
    the desk in the event loop in which they are called.
    """
    app = FastAPI(
        title="cot-engine",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            Exception: on_error,
            CotEngineError: on_error,
            Refused: on_error,
            HTTPException: on_http,
            RequestValidationError: on_invalid,
        },
    )
    metrics = Metrics(desk)
    app.state.desk, app.state.served, app.state.metrics = desk, served, metrics
    app.state.keyed, app.state.reading = bool(keys), asyncio.Semaphore(_READING)
    for router in (_router(), *routers):
        app.include_router(router)
    _without_422(app)
    limits = desk.limits
    return Guard(
        app,
        keys=keys,
        hosts=hosts,
        public=public,
        upload=limits.upload,
        uploads=limits.uploads,
        told=lambda path, status: metrics.requests.labels(path, str(status)).inc(),
    )


def client_of(request: Request, user: str | None = None) -> str:
    """Who asks: the name of a key, or an address, where `user` tells its users apart."""
    client: str = request.state.client
    return client if request.app.state.keyed or not user else f"{client}/{user}"


def _router() -> APIRouter:
    router = APIRouter(responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}})
    router.post("/v1/chat/completions")(chat)
    router.get("/v1/models")(models)
    router.get("/v1/models/{name:path}")(model)
    router.get("/v1/traces/{id}")(trace)
    router.get("/health")(health)
    router.get("/metrics")(metrics)
    return router


async def chat(request: Request, body: ChatRequest) -> Response:
    """Answer a question about pictures, or none, by a search."""
    desk: Desk = request.app.state.desk
    client = client_of(request, body.user)
    async with request.app.state.reading:
        found = await in_thread(lambda: asked(body, request.app.state.served))
        ticket = await desk.open(client, found.pictures, found.question, found.options)
    if not body.stream:
        answer = await attended(request.receive, ticket, ticket.answer())
        return json(reply(ticket, answer, body.model))
    await attended(request.receive, ticket, begun(ticket))
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return EventStream(ticket, chunks(ticket, body.model, usage))


async def models(request: Request) -> Response:
    """The model, and it with each strategy. NAME:STRATEGY-N is a model too, for any N."""
    return json({"object": "list", "data": _models(request.app.state.served)})


async def model(request: Request, name: str) -> Response:
    """One of them."""
    served = request.app.state.served
    strategy_of(name, served, None)  # raises NoModel
    return json(_model(name))


def _models(served: str) -> list[dict[str, Any]]:
    return [_model(served), *(_model(f"{served}:{each}") for each in plugins.choices("strategy"))]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cot-engine"}


async def trace(request: Request, id: str, html: str | None = None) -> Response:
    """The trace of a search of yours, one event a line; with ?html as a page."""
    desk: Desk = request.app.state.desk
    ticket = desk.ticket(id)
    client = ticket.client if ticket is not None and _may(request, ticket.client) else None
    lines = await desk.trace(client or client_of(request), id)
    if not lines:
        raise Refused(404, f"There is no trace {id[:80]!r}, or no more.", "not_found")
    if html is None:
        return Response(lines, media_type="application/jsonl")
    from cot_engine.show.html import render_html

    page = await in_thread(lambda: render_html(Trace.parse(lines, id)))
    return Response(page.encode("utf-8", "backslashreplace"), 200, _PAGE, "text/html")


def _may(request: Request, client: str) -> bool:
    """Whether who asks may read what is this client's: without keys, who asks from there."""
    own = client_of(request)
    return client == own or (not request.app.state.keyed and client.startswith(f"{own}/"))


async def health(request: Request) -> Response:
    """Whether it takes searches, and how many there are."""
    desk: Desk = request.app.state.desk
    said = {
        "status": "closing" if desk.closing else "ok",
        "model": request.app.state.served,
        "places": desk.places,
        "running": desk.running,
        "waiting": desk.waiting,
    }
    return json(said, 503 if desk.closing else 200)


async def metrics(request: Request) -> Response:
    """What Prometheus reads."""
    return Response(request.app.state.metrics.page(), 200, None, CONTENT)


def json(value: Any, status: int = 200) -> Response:
    """A response in JSON."""
    return Response(as_json(value), status, None, "application/json")


def _without_422(app: FastAPI) -> None:
    """What the framework says of a body that is not of the schema is not what is answered."""
    schema = app.openapi()
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
