"""Whatever is sent: an answer, or a 4xx with an error of the right shape; never a 500 or a hang."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from copy import deepcopy
from random import Random

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
NAMES = sorted({*ChatRequest.model_fields, *NEUTRAL})
VALUES = [
    *(None, True, False, 0, 1, -1, 3, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "1", "none", "greedy", "user", "\x1b[2J\n", "\ud800", "\u202e<b>", "x" * 30_000),
    *([], {}, [[]], [None], {"": {}}, {"type": "text", "text": "x"}, {"url": "data:,"}, [0] * 99),
    *("bundled:stage-beam-2", "bundled:", "data:image/png;base64,AAAA", "/etc/passwd", "2 s"),
]


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
        desk = Desk(engine, Limits(seconds=10, pixels=10_000))
        made = Sender(make_app(desk, routers=[page.router()]))
        yield made
        made.loop.run_until_complete(made.client.aclose())
        made.loop.run_until_complete(desk.close())
        made.loop.close()


def mutated(random: Random, good: list[dict]) -> bytes:
    """A good body with up to three things in it changed, or some of its bytes."""
    body = json.loads(json.dumps(random.choice(good)))
    for _ in range(random.randrange(4)):
        place, key = random.choice([*places(body)])
        if isinstance(place, dict) and random.randrange(4) == 0:
            key = random.choice([*NAMES, "x", "", "\udfff"])
        place[key] = deepcopy(random.choice(VALUES))
        if random.randrange(4) == 0 and key in place:
            del place[key]
    text = json.dumps(body).encode()
    if random.randrange(10) == 0:
        at = random.randrange(len(text))
        text = text[:at] + random.randbytes(random.randrange(4)) + text[at + random.randrange(4) :]
    return text


def places(value) -> Iterator[tuple[dict | list, str | int]]:
    """Where there is something inside of it: what it is in, and by what name."""
    yield from [(value, "x")] if not value else []
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)) and value[key]:
            yield from places(value[key])


def schema(app):
    made = schemathesis.openapi.from_dict(app.app.openapi())
    return [each.ok() for each in made.get_all_operations()]


def nearly_right(sender, path: str, good: list[dict], count: int) -> None:
    """Send so many bodies that are nearly right."""
    for seed in range(count):
        text = mutated(Random(seed), good)
        try:
            sender.send("POST", path, content=text, headers={"Content-Type": "application/json"})
        except BaseException:
            print(f"seed {seed}: {text[:3000]!r}")
            raise


def by_schema(sender, operations, count: int) -> None:
    """Send so many requests as the schema describes them, and as it does not."""
    for operation in operations:
        either = st.one_of(
            operation.as_strategy(generation_mode=mode)
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        )

        @settings(
            max_examples=count if operation.method == "post" else count // 4,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(either)
        def calls(case):
            asked = case.as_transport_kwargs(base_url="http://localhost")
            known = {key: asked[key] for key in ("params", "json") if key in asked}
            headers = asked.get("headers") or {}
            known["headers"] = {key: value for key, value in headers.items() if value.isascii()}
            if isinstance(asked.get("data"), bytes):
                known["content"] = asked["data"]
            sender.send(asked["method"], asked["url"], **known)

        calls()


def test_whatever_is_sent(sender):
    nearly_right(sender, "/v1/chat/completions", BODIES, 200)
    nearly_right(sender, "/ui/searches", PAGE, 40)
    by_schema(sender, schema(sender.client._transport.app), 24)
    assert sender.seen[200] > 40 and sender.seen[400] > 80, sender.seen


@pytest.mark.slow
def test_whatever_is_sent_ten_thousand_times(sender):
    nearly_right(sender, "/v1/chat/completions", BODIES, 9000)
    nearly_right(sender, "/ui/searches", PAGE, 1000)
    assert sum(sender.seen.values()) >= 10_000
