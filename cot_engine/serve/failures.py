"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
import re
import traceback
from contextlib import suppress
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cot_engine.errors import (
    BudgetError,
    CotEngineError,
    ImageError,
    InputError,
    ModelError,
    StrategyError,
    UnknownNameError,
    readable,
    shown,
)
from cot_engine.serve import schema
from cot_engine.serve.asked import NoModel
from cot_engine.serve.desk import Busy, Cancelled, Late

_log = logging.getLogger("cot_engine.serve")
INVALID, SERVER = "invalid_request_error", "server_error"
_KINDS: list[tuple[type[CotEngineError], int, str, str]] = [
    (NoModel, 404, INVALID, "model_not_found"),
    (Late, 504, SERVER, "timeout"),
    (Cancelled, 499, INVALID, "cancelled"),
    (UnknownNameError, 400, INVALID, "unknown_name"),
    (ImageError, 400, INVALID, "invalid_image"),
    (BudgetError, 400, INVALID, "budget_too_small"),
    (InputError, 400, INVALID, "invalid_value"),
    # What was asked was in order: a part or the model failed, which may pass.
    (StrategyError, 503, SERVER, "part_failed"),
    (ModelError, 503, SERVER, "model_failed"),
]
_BUSY = {
    "full": (429, "rate_limit_error", "queue_full"),
    "spent": (429, "insufficient_quota", "quota_spent"),
    "closing": (503, SERVER, "closing"),
}
_ADDRESS = re.compile(r"https?://[^\s'\",]+")
AGAIN = 5
"""Seconds after which it is worth asking again where a part or the model failed."""


class Refused(Exception):
    """What is answered without anything having been done."""

    def __init__(
        self, status: int, said: str, code: str, kind: str = INVALID, **headers: str
    ) -> None:
        super().__init__(said)
        self.status, self.said, self.code, self.kind, self.headers = (
            *(status, said, code, kind),
            {name.replace("_", "-"): value for name, value in headers.items()},
        )


def body(said: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The error as a client reads it. Sentences about a field begin with its name."""
    if param is None and (first := said.partition(" ")[0]) in schema.ChatRequest.model_fields:
        param = first
    said = " ".join(readable(said).split())
    return {"error": {"message": said, "type": kind, "param": param, "code": code}}


def described(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an error of a request or a search."""
    if isinstance(error, Refused):
        return error.status, body(error.said, error.kind, error.code), error.headers
    if isinstance(error, Busy):
        status, kind, code = _BUSY[error.why]
        return status, body(str(error), kind, code), {"Retry-After": str(error.retry_after)}
    for which, status, kind, code in _KINDS:
        if isinstance(error, which):
            if status != 503:
                return status, body(str(error), kind, code), {}
            _log.warning("%s: %s", code, readable(error.message))
            said = _ADDRESS.sub("its address", str(error))  # of a model's server: not the client's
            return status, body(said, kind, code), {"Retry-After": str(AGAIN)}
    if isinstance(error, CotEngineError):
        return 400, body(str(error), INVALID, None), {}
    _write_down(error)
    said = "This is a defect of the server, which has written down what happened."
    return 500, body(said, SERVER, "defect"), {}


def _write_down(error: BaseException) -> None:
    """Where a defect happened, once; not what was asked, which its text may hold."""
    if not getattr(error, "written_down", False):
        where = "".join(traceback.format_tb(error.__traceback__))
        _log.error("A defect, %s:\n%s", type(error).__name__, where.rstrip())
        with suppress(AttributeError):
            error.written_down = True  # type: ignore[attr-defined]  # heard of on its way up again


def as_json(value: Any) -> bytes:
    """In ASCII: half a surrogate pair, which a model or a user may write, has no UTF-8."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def answered(error: BaseException) -> Response:
    """The response to an error."""
    status, value, headers = described(error)
    return Response(as_json(value), status, headers, "application/json")


# --- what the framework finds --------------------------------------------------------------------


async def on_error(request: Request, error: Exception) -> Response:
    """For any error that an endpoint raises."""
    return answered(error)


async def on_http(request: Request, error: Exception) -> Response:
    """For paths and methods that there are not, and bodies that cannot be parsed."""
    assert isinstance(error, HTTPException)
    said = {404: "There is nothing at this address.", 405: "This address has no such method."}
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_body")
    value = body(said.get(error.status_code, "The body cannot be read as JSON."), INVALID, code)
    headers = dict(error.headers or {})
    return Response(as_json(value), error.status_code, headers, "application/json")


async def on_invalid(request: Request, error: Exception) -> Response:
    """For a body that is not of the schema: its first fault, which field, and what is allowed."""
    assert isinstance(error, RequestValidationError)
    fault = _worst(list(error.errors()))
    kind, value = fault["type"], fault.get("input")
    # What may be of several types has the name of one of them behind where it stands.
    loc = fault["loc"]
    scalar = loc[-1:] == ("bool",) and kind == "bool_type"  # the first that a scalar may be
    place = _place(loc[:-1] if scalar or (loc[-1:] == ("str",) and kind == "string_type") else loc)
    where = ".".join(place)
    status, code = 400, "invalid_value"
    if isinstance(value, bytes):
        said = "A body has another type. Send JSON, with Content-Type: application/json."
        status, code = 415, "invalid_body"
    elif kind == "extra_forbidden":
        said = str(UnknownNameError("field called", place[-1], _known(place[:-1])))
    elif kind == "json_invalid":
        said, where, code = "The body is not JSON.", "", "invalid_body"
    elif kind == "missing":
        said = f"{where or 'The body'} is missing."
    else:
        must = "It must be a text, a finite number, true or false" if scalar else fault["msg"]
        said = f"{where or 'The body'} is {shown(value)}. {must}."
    value = body(said, INVALID, code, readable(where) or None)
    return Response(as_json(value), status, None, "application/json")


def _worst(errors: list[Any]) -> Any:
    """The fault to tell: of a field that is not there, which explains others that are missing, or
    else the innermost, for of a union every member is said to be wrong."""
    unknown = [each for each in errors if each["type"] == "extra_forbidden"]
    return max(unknown or errors, key=lambda each: len(each["loc"]))


def _place(loc: tuple[Any, ...]) -> list[str]:
    """Where it stands in what was sent: without the names of unions and of their members."""
    found: list[str] = []
    tag = False  # whether the next one is that of a member
    for part in loc[1:]:
        if isinstance(part, str) and part.startswith(("list[", "function-")):
            tag = part.startswith("list[tagged")
        elif tag and part in ("text", "image_url"):
            tag = False
        else:
            found.append(str(part))
    return found


def _known(place: list[str]) -> list[str]:
    """The fields that there are at a place."""
    fields: dict[str, Any] = {
        "": schema.ChatRequest,
        "plan": schema.StageTable,
        "content": schema.ImagePart,
        "image_url": schema.ImageUrl,
    }
    names = [part for part in place if not part.isdigit()]
    return list(fields.get(names[-1] if names else "", schema.TextPart).model_fields)
