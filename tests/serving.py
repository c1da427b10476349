"""A desk's application behind a real socket, in a thread of this process, and what asks it."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from contextlib import contextmanager

import httpx
import openai
import PIL.Image

from cot_engine import Engine, Profile
from cot_engine.serve.app import make_app
from cot_engine.serve.desk import Desk
from cot_engine.serve.guard import LOOPBACK
from cot_engine.serve.limits import Limits
from cot_engine.serve.server import Server, listening
from cot_engine.testing import ScriptedBackend, staged_reply

QUESTION = [{"role": "user", "content": "How many are there?"}]
TRAINED = {"mode": "trained"}  # what a scripted model is, without being asked


class Gate(ScriptedBackend):
    """Writes only while it is open: searches are where a test wants them."""

    def __init__(self, script=staged_reply) -> None:
        super().__init__(script)
        self.open = threading.Event()

    async def generate(self, request):
        while not self.open.is_set():
            await asyncio.sleep(0.002)
        return await super().generate(request)


def scripted(backend=None, in_flight=4) -> Engine:
    return Engine(backend or ScriptedBackend(), profile=Profile("likelihood"), in_flight=in_flight)


def picture(colour="red", size=(32, 16)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def seen(question: str, *pictures: bytes) -> list[dict]:
    """Messages of one user's turn with pictures."""
    parts = [{"type": "image_url", "image_url": {"url": url(each)}} for each in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


class Served:
    """A running server: its address, its desk, and clients of it."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.port = port
        self.desk: Desk = None
        self.server: Server = None
        self.loop: asyncio.AbstractEventLoop = None

    def openai(self, **more) -> openai.OpenAI:
        given = {"base_url": f"{self.base}/v1", "api_key": "none", "max_retries": 0, "timeout": 60}
        return openai.OpenAI(**given | more)

    def http(self, **more) -> httpx.Client:
        return httpx.Client(base_url=self.base, timeout=60, trust_env=False, **more)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)


@contextmanager
def serving(engine: Engine, limits: Limits | None = None, config=None, **how):
    """Serve it on a free port while this lasts."""
    with listening("127.0.0.1", 0) as at:
        served = Served(at.getsockname()[1])
        ready = threading.Event()

        async def main():
            served.desk = Desk(engine, limits or Limits(grace=5), config)
            app = make_app(served.desk, "bundled", **{"hosts": LOOPBACK, **how})
            served.server = Server(app, served.desk, lambda text: None)
            served.loop = asyncio.get_running_loop()
            ready.set()
            await served.server.serve(sockets=[at])

        thread = threading.Thread(target=lambda: asyncio.run(main()))
        thread.start()
        assert ready.wait(30)
        try:
            yield served
        finally:
            if not served.server.should_exit:
                served.stop()
            thread.join(30)
            assert not thread.is_alive()
