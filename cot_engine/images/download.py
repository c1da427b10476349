"""The bytes behind an http(s) address: only if the user allowed it, within a size and a time.

Whoever names an address may be a stranger, so that what is reached is bounded too: an address of
this machine or of an inner network is refused, in a redirect as in the first place, unless it was
allowed apart. A name is resolved once, and what was checked is what is asked: proxies that the
environment names, which would resolve it again, are not used. Nothing secret is sent: no
credentials, no cookies.
"""

from __future__ import annotations

import io
import ipaddress
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urljoin, urlsplit

from cot_engine.errors import ImageError, cut, shown

if TYPE_CHECKING:
    import http.client

AllowUrl = bool | Literal["inner"]
"""May pictures be read from URLs? "inner": also from this machine and inner networks."""

URL_BYTES = 50_000_000
URL_SECONDS = 20.0
"""For all of it: names, connections, redirects, headers and body."""
URL_REDIRECTS = 5

_MOVED = (301, 302, 303, 307, 308)
_SAFE = "/%:=&?~#+!$,;'@()*[]"  # what an address may hold as it stands
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PATH = "or download it and give the path."


class _Refused(Exception):
    """Why an address is not asked, and what to do."""


def download(url: str, scheme: str, allowed: AllowUrl) -> tuple[bytes, str]:
    """The bytes at `url`, and its name for people, without a password that it may hold. Raises
    ImageError."""
    name = re.sub(r"(?<=://)[^/?#]*@", "", url)[:200]
    if scheme not in ("http", "https"):
        raise ImageError(
            f"The image {shown(name)} has the scheme {scheme!r}.", "Only http and https are read."
        )
    if not allowed:
        raise ImageError(
            f"The image {name!r} is a URL, and those are off by default.",
            f"Allow it with --allow-url (allow_url=True), {_PATH}",
        )
    import http.client  # here, because it is slow to import and rarely needed

    deadline = time.monotonic() + URL_SECONDS
    try:
        return _follow(url, allowed == "inner", deadline), name
    except _Refused as error:
        said, hint = error.args
        raise ImageError(f"The image at {name} {said}.", hint) from None
    except TimeoutError:
        raise ImageError(
            f"The image at {name} did not arrive within {URL_SECONDS:g} seconds.",
            f"Try again, {_PATH}",
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise ImageError(
            f"The image at {name} cannot be read: {reason}.", f"Check the address, {_PATH}"
        ) from None


def _follow(url: str, inner: bool, deadline: float) -> bytes:
    for _ in range(URL_REDIRECTS + 1):
        connection, wire = _connected(url, inner, deadline)
        try:
            reply = _asked(connection, url)
            if reply.status not in _MOVED or not (place := reply.headers.get("Location")):
                return _body(reply)
            # As it came: http.client reads headers as Latin-1, whatever they are.
            url = urljoin(url, quote(place.strip().encode("latin-1"), _SAFE))
        finally:
            wire.end()
    said = f"cannot be read: it leads on more than {URL_REDIRECTS} times"
    raise _Refused(said, f"Check the address, {_PATH}")


def _asked(connection: http.client.HTTPConnection, url: str) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    path = quote(parts.path or "/", _SAFE)
    if parts.query:
        path += "?" + quote(parts.query, _SAFE)
    connection.request("GET", path, headers={"User-Agent": "cot-engine", "Connection": "close"})
    return connection.getresponse()


def _body(reply: http.client.HTTPResponse) -> bytes:
    if not 200 <= reply.status < 300:
        said = f"cannot be read: the server says {reply.status} {cut(reply.reason)}"
        raise _Refused(said, f"Check the address, {_PATH}")
    data = bytearray()
    while chunk := reply.read1(1 << 16):
        data += chunk
        if len(data) > URL_BYTES:
            raise _Refused(
                f"is larger than {URL_BYTES:,} bytes",
                "Download it, make it smaller, and give the path.",
            )
    if reply.length:
        raise OSError(f"the server ended it {reply.length:,} bytes early")
    return bytes(data)


# --- one connection ------------------------------------------------------------------------------


def _connected(url: str, inner: bool, deadline: float) -> tuple[http.client.HTTPConnection, _Wire]:
    """A connection to where `url` is. Raises _Refused for what must not be asked."""
    import http.client

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        said = f"cannot be read: it leads to {shown(url)}"
        raise _Refused(said, "Only http and https are read.")
    if parts.username is not None or parts.password is not None:
        said = "cannot be read: the address holds a user name, and those are not sent"
        raise _Refused(said, f"Leave it out, {_PATH}")
    if not parts.hostname:
        raise _Refused("cannot be read: it names no server", f"Check the address, {_PATH}")
    host = parts.hostname.encode("ascii" if ":" in parts.hostname else "idna").decode()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = _resolved(host, port, deadline)
    usable = [each for each in found if inner or is_outer(each[-1][0])]
    if not usable:
        at = ", ".join(dict.fromkeys(each[-1][0] for each in found))
        raise _Refused(
            f"is at {host} ({at[:80]}), an address of this machine or an inner network",
            f'Allow those too with --allow-inner-url (allow_url="inner"), {_PATH}',
        )
    connection = http.client.HTTPConnection(host, parts.port)
    sock = _opened(usable, deadline)
    try:
        if parts.scheme == "https":
            import ssl

            sock.settimeout(_left(deadline))  # of the whole handshake
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
            connection.default_port = 443
    except BaseException:
        sock.close()
        raise
    wire = _Wire(sock, deadline)
    connection.sock = wire
    return connection, wire


def is_outer(address: str) -> bool:
    """Is it an address that anyone can be at: not this machine's, nor of any inner network?"""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inside = ipaddress.IPv4Address(found.packed[-4:])
        if inside is None:
            return found in _UNICAST and found.is_global
        found = inside
    return found.is_global and not found.is_multicast


def _resolved(host: str, port: int, deadline: float) -> list[Any]:
    """What the name stands for. The system's resolver knows no time limit: a thread that waits for
    it is left behind."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=ask, name="cot-engine resolver", daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise found[0]
    addresses: list[Any] = found[0]
    return addresses


def _opened(addresses: list[Any], deadline: float) -> socket.socket:
    """A socket to the first address that answers, each being given its share of the time."""
    for at, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline) / (len(addresses) - at))
            sock.connect(address)
            return sock
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError) or at == len(addresses) - 1:
                raise
    raise OSError("no address")


def _left(deadline: float) -> float:
    """Seconds. Raises TimeoutError if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Wire(io.RawIOBase):
    """A connected socket, as http.client wants one, every wait of which ends at the deadline: a
    socket's own limit is of one wait, and a server that sends a byte now and then has many."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        """Nothing: http.client closes its own end before the body has been read."""

    def end(self) -> None:
        self._sock.close()
