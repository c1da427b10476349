"""The command line on a scripted model: `python scripted_cli.py solve ...`, and for tests.

SCRIPT chooses what the model does: "" answers at once, "slow" takes a second for each request,
counting, "long" writes conclusions of 60 words, "hostile" writes escape sequences and markup,
"crash" raises what nobody expected. "defect" and "load" fail while loading, the first as a fault of
ours. SEEN names a file that is written when the model loads.
"""

import asyncio
import logging
import os
import sys
import warnings
from pathlib import Path

from cot_engine.cli import main
from cot_engine.engine.facade import Engine
from cot_engine.judging.profile import Profile
from cot_engine.testing import ScriptedBackend, staged_reply

HOSTILE = "\x1b[31m\x1b]0;owned\x07\r\u202e[bold]x[/bold]\x9b2J"


class Model(ScriptedBackend):
    async def generate(self, request):
        script = os.environ.get("SCRIPT")
        logging.getLogger("some.library").warning("chatter")
        warnings.warn("chatter", stacklevel=1)
        if script == "slow":
            for _ in range(20):
                await asyncio.sleep(0.05)
                if request.headway is not None:
                    request.headway.tokens += 1
        if script == "crash":
            raise ZeroDivisionError("a [defect]\x1b[31m")
        return await super().generate(request)


def _hostile(request, seed):
    return staged_reply(request, seed).replace("</", HOSTILE + "</")


def _long(request, seed):
    reply = staged_reply(request, seed)
    return reply.replace("</CONCLUSION>", " and" * 60 + "</CONCLUSION>")


def load(model="bundled", *, on_notice=None, in_flight=32, **_options):
    """In place of Engine.from_pretrained."""
    script = os.environ.get("SCRIPT")
    if "SEEN" in os.environ:
        Path(os.environ["SEEN"]).write_text(model)
    if script == "defect":
        raise ZeroDivisionError("a [defect]\x1b[31m")
    if script == "load":
        raise ValueError("no such layer")
    if on_notice:
        on_notice("The batch was halved.")
    scripts = {"hostile": _hostile, "long": _long}
    backend = Model(script=scripts.get(script, staged_reply))
    profile = Profile.of(model) if Path(model).is_dir() else Profile("likelihood")
    return Engine(backend, profile=profile, in_flight=in_flight)


if __name__ == "__main__":
    Engine.from_pretrained = load
    sys.exit(main())
