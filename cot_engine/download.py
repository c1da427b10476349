"""The bytes behind an http(s) address: only if the user allowed it, within a size and a time."""

from __future__ import annotations

import re
import time

from cot_engine.errors import ImageError

URL_BYTES = 50_000_000
URL_SECONDS = 20.0


def download(url: str, scheme: str, allowed: bool) -> tuple[bytes, str]:
    """The bytes at `url`, and its name for people, without a password that it may hold."""
    import http.client  # here, because they are slow to import and rarely needed
    import urllib.error
    import urllib.request

    name = re.sub(r"(?<=://)[^/?#]*@", "", url)[:200]
    if scheme not in ("http", "https"):
        raise ImageError(
            f"The image {name[:80]!r} has the scheme {scheme!r}.", "Only http and https are read."
        )
    if not allowed:
        raise ImageError(
            f"The image {name!r} is a URL, and those are off by default.",
            "Allow it with --allow-url (allow_url=True), or download it and give the path.",
        )
    opener = urllib.request.OpenerDirector()  # the default one would follow ftp:, file: and data:
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    deadline = time.monotonic() + URL_SECONDS
    data = bytearray()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "cot-engine"})
        with opener.open(request, timeout=URL_SECONDS) as reply:
            while chunk := reply.read1(1 << 16):
                data += chunk
                if len(data) > URL_BYTES:
                    raise ImageError(
                        f"The image at {name} is larger than {URL_BYTES:,} bytes.",
                        "Download it, make it smaller, and give the path.",
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError
    except TimeoutError:
        raise ImageError(
            f"The image at {name} did not arrive within {URL_SECONDS:g} seconds.",
            "Try again, or download it and give the path.",
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(error, urllib.error.HTTPError):
            reason = f"the server says {error.code} {error.reason}"
        elif isinstance(reason, TimeoutError):
            reason = f"no reply within {URL_SECONDS:g} seconds"
        raise ImageError(
            f"The image at {name} cannot be read: {reason}.",
            "Check the address, or download it and give the path.",
        ) from None
    return bytes(data), name
