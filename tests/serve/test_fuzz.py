"""Whatever is sent: an answer, or a 4xx with an error of the right shape; never a 500 or a hang."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from serving import QUESTION, picture, scripted, seen

from cot_engine.escape import visible
from cot_engine.serve.app import make_app
from cot_engine.serve.desk import Desk
from cot_engine.serve.limits import Limits
from cot_engine.serve.page import routes as page
from cot_engine.serve.schema import NEUTRAL, ChatRequest

LONGEST = 20.0
"""Seconds that an answer may take, on cores that others use too."""
GOOD = {"model": "bundled", "messages": QUESTION}
picture_64 = base64.b64encode(picture()).decode()
BODIES = [
    GOOD,
    {"model": "bundled:best-of-n-2", "messages": seen("How many?", picture()), "stream": True},
    {**GOOD, "strategy": "majority", "parameters": {"n": 2}, "budget": "300 new tokens"},
    {**GOOD, "plan": [{"tag": "A", "purpose": "p", "question": "q", "length": 9}], "seed": 1},
    {**GOOD, "temperature": 0.5, "top_p": 0.5, "detail": "brief", "max_tokens": 400, "user": "u"},
]
PAGE = [
    {"question": "How many?", "pictures": [{"name": "a.png", "data": picture_64}], "seed": 3},
    {"question": "How many?", "strategy": "best-of-n", "parameters": {"n": 2}, "budget": "9 s"},
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted({*ChatRequest.model_fields, *NEUTRAL})) | st.text(max_size=6)


class Sender:
    """Sends into the application, in this process, on a loop of its own."""

    def __init__(self, app) -> None:
        self.loop = asyncio.new_event_loop()
        transport = httpx.ASGITransport(app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        self.seen: dict[int, int] = {}

    def send(self, method: str, path: str, **more) -> httpx.Response:
        begun = time.monotonic()
        work = self.client.request(method, path, **more)
        reply = self.loop.run_until_complete(asyncio.wait_for(work, 2 * LONGEST))
        assert time.monotonic() - begun < LONGEST
        self.seen[reply.status_code] = self.seen.get(reply.status_code, 0) + 1
        check(reply, path)
        return reply


def check(reply: httpx.Response, path: str) -> None:
    if reply.status_code == 200:
        return
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text)
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    said = error["message"]
    assert said and len(said) < 5000 and visible(said) == said and "\n" not in said


@pytest.fixture(scope="module")
def sender():
    with scripted() as engine:
        made = Sender(
            make_app(Desk(engine, Limits(seconds=10, pixels=10_000)), routers=[page.router()])
        )
        yield made
        made.loop.run_until_complete(made.client.aclose())
        made.loop.close()


@st.composite
def mutated(draw, bodies) -> bytes:
    """A good body with something in it changed, or its bytes."""
    body = json.loads(json.dumps(draw(st.sampled_from(bodies))))
    for _ in range(draw(st.integers(0, 2))):
        place = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and draw(st.booleans()):
                place = place[key]
                continue
            if isinstance(place, dict) and draw(st.integers(0, 3)) == 0:
                place[draw(NAMES)] = draw(JSON)
            else:
                place[key] = draw(JSON)
            break
    text = json.dumps(body).encode()
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=4)) + text[at + draw(st.integers(0, 4)) :]
    return text


def schema(app):
    made = schemathesis.openapi.from_dict(app.app.openapi())
    return [each.ok() for each in made.get_all_operations()]


def fuzz(sender, app_schema, bodies_: int, calls_: int) -> None:
    """So many bodies that are nearly right, and so many calls of each operation by its schema."""
    every = settings(
        max_examples=bodies_,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    def nearly(path: str, good: list[dict], count: int) -> None:
        @settings(every, max_examples=count)
        @given(mutated(good))
        def bodies(text):
            headers = {"Content-Type": "application/json"}
            sender.send("POST", path, content=text, headers=headers)

        bodies()

    nearly("/v1/chat/completions", BODIES, bodies_)
    nearly("/ui/searches", PAGE, calls_)
    for operation in app_schema:
        either = st.one_of(
            operation.as_strategy(generation_mode=mode)
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        )

        @settings(every, max_examples=calls_ if operation.method == "post" else calls_ // 4)
        @given(either)
        def calls(case):
            asked = case.as_transport_kwargs(base_url="http://localhost")
            path = asked.pop("url")
            method = asked.pop("method")
            known = {key: asked[key] for key in ("headers", "params", "json") if key in asked}
            known["headers"] = {
                key: value for key, value in (asked.get("headers") or {}).items() if value.isascii()
            }
            if isinstance(asked.get("data"), bytes):
                known["content"] = asked["data"]
            sender.send(method, path, **known)

        calls()


def test_whatever_is_sent(sender):
    fuzz(sender, schema(sender.client._transport.app), 200, 40)
    assert sender.seen[200] > 20 and sender.seen[400] > 100, sender.seen


@pytest.mark.slow
def test_whatever_is_sent_ten_thousand_times(sender):
    fuzz(sender, schema(sender.client._transport.app), 9000, 600)
    assert sum(sender.seen.values()) > 10_000
