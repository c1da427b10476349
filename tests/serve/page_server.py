"""The page on a scripted model, for a browser: `python page_server.py` serves it at port 8765."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import contextmanager

import uvicorn

from cot_engine.engine.facade import Engine
from cot_engine.judging.profile import Profile
from cot_engine.options.config import RunConfig
from cot_engine.serve.app import make_app
from cot_engine.serve.desk import Desk
from cot_engine.serve.limits import Limits
from cot_engine.serve.page.routes import PUBLIC, router
from cot_engine.testing import ScriptedBackend, staged_reply

HOSTILE = (
    "<script>window.owned=1</script><img src=x onerror=window.owned=2>"
    "<svg onload=window.owned=3>\"'>{{7*7}} \x1b[31m\u202eevil\u2066"
    " <a href=javascript:owned=4>x</a>"
)


def wordy(request, seed):
    """Stages of a few words more; what is asked decides what else they hold."""
    text = staged_reply(request, seed)
    question = request.prompt.text
    if "hostile" in question:
        return text.replace("</", f"{HOSTILE}</")
    if "break" in question:
        raise ZeroDivisionError("the scripted model fell over")
    words = " as far as one can see from here," * (2 + seed % 2)
    return text.replace("About", f"It is, {words} about")


def app(pause: float = 0.004, config: RunConfig | None = None, **more):
    """The application around a model that takes `pause` seconds for a word."""
    engine = Engine(ScriptedBackend(wordy, pause=pause), profile=Profile("self"))
    return make_app(
        Desk(engine, Limits(), config), "scripted", routers=[router()], public=PUBLIC, **more
    )


@contextmanager
def serving(application, port: int = 0):
    """Its address, while it is served."""
    with socket.socket() as at:
        at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        at.bind(("127.0.0.1", port))
        server = uvicorn.Server(
            uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{at.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(10)


if __name__ == "__main__":
    with serving(app(float(sys.argv[1]) if len(sys.argv) > 1 else 0.03), 8765) as address:
        print(address, flush=True)
        threading.Event().wait()
