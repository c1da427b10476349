"""Pictures from addresses that strangers chose: one deadline for all of it, and no inner address.

Servers are real, on this machine. In most tests 127.0.0.1 stands for an address that anyone can be
at, and 127.0.0.2 stays what it is.
"""

from __future__ import annotations

import socket
import threading
import time

import pytest

from cot_engine.cli import main
from cot_engine.errors import ImageError
from cot_engine.images import download
from cot_engine.images.download import is_outer

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
def outer(monkeypatch):
    monkeypatch.setattr(download, "is_outer", lambda address: address == "127.0.0.1")


@pytest.fixture
def serve():
    """serve(answer): a server's port, and the requests it got. `answer(sock, request)` writes."""
    stop, servers = threading.Event(), []

    def start(answer, host="127.0.0.1"):
        listening = socket.create_server((host, 0))
        servers.append(listening)
        asked: list[str] = []

        def one(sock):
            with sock:
                try:
                    request = sock.recv(65536).decode("latin-1")
                    asked.append(request)
                    answer(sock, request)
                except OSError:
                    pass

        def loop():
            while not stop.is_set():
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(sock,), daemon=True).start()

        threading.Thread(target=loop, daemon=True).start()
        return listening.getsockname()[1], asked

    start.stop = stop
    yield start
    stop.set()
    for server in servers:
        server.close()


def get(url, allowed=True):
    return download.download(url, url.partition(":")[0], allowed)[0]


def fails(url, *words, allowed=True):
    with pytest.raises(ImageError) as caught:
        get(url, allowed)
    for word in (*words, "give the path" if "scheme" not in words else ""):
        assert word in str(caught.value), str(caught.value)
    return str(caught.value)


def to(place):
    line = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
    return lambda sock, _: sock.sendall(line)


def plain(sock, _):
    sock.sendall(REPLY)


# --- time and size -------------------------------------------------------------------------------


def dripping(data, stop):
    def answer(sock, _):
        for at in range(len(data)):
            sock.sendall(data[at : at + 1])
            if stop.wait(0.05):
                return

    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 90,
        b"HTTP/1.1 " + b"0" * 5000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 500,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 500,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"a" * 5000,
    ],
    ids="headers status continue chunks body".split(),
)
def test_one_deadline_whatever_drips(serve, monkeypatch, data):
    monkeypatch.setattr(download, "URL_SECONDS", 0.4)
    port, _ = serve(dripping(data, serve.stop))
    begun = time.monotonic()
    fails(f"http://127.0.0.1:{port}/a.png", "within 0.4 seconds", allowed="inner")
    assert time.monotonic() - begun < 5  # a byte each 0.05 s: 25 s and more


def test_redirects_share_the_deadline(serve, outer, monkeypatch):
    monkeypatch.setattr(download, "URL_SECONDS", 0.5)
    monkeypatch.setattr(download, "URL_REDIRECTS", 1000)

    def slow(sock, request):
        time.sleep(0.1)
        to("/again")(sock, request)

    port, asked = serve(slow)
    fails(f"http://127.0.0.1:{port}/", "within 0.5 seconds")
    assert len(asked) < 10


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_says_nothing(serve, outer, monkeypatch, scheme):
    monkeypatch.setattr(download, "URL_SECONDS", 0.3)
    port, _ = serve(lambda sock, _: serve.stop.wait(5))
    fails(f"{scheme}://127.0.0.1:{port}/", "within 0.3 seconds")


def test_a_resolver_that_never_answers(monkeypatch):
    monkeypatch.setattr(download, "URL_SECONDS", 0.3)
    waiting = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: waiting.wait(30))
    fails("http://example.org/", "within 0.3 seconds")
    waiting.set()


def test_size_and_what_ends_early(serve, outer, monkeypatch):
    monkeypatch.setattr(download, "URL_BYTES", 1000)
    port, _ = serve(lambda sock, _: sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(2000)))
    fails(f"http://127.0.0.1:{port}/", "larger than 1,000 bytes")
    port, _ = serve(lambda sock, _: sock.sendall(REPLY[:-2]))
    fails(f"http://127.0.0.1:{port}/", "2 bytes early")
    for junk in (b"", b"\0\xff\n\n", b"HTTP/9.9 x y\r\n\r\n", b"SSH-2.0-x\r\n"):
        port, _ = serve(lambda sock, _, junk=junk: sock.sendall(junk))
        fails(f"http://127.0.0.1:{port}/", "cannot be read")
    port, _ = serve(lambda sock, _: sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500))
    fails(f"http://127.0.0.1:{port}/", "cannot be read", "headers")


# --- where it leads ------------------------------------------------------------------------------


def test_what_is_sent_and_a_redirect_that_is_followed(serve, outer):
    end, asked = serve(plain)
    begin, _ = serve(to(f"http://127.0.0.1:{end}/b c/ü.png?q=ä#part"))
    assert get(f"http://127.0.0.1:{begin}/") == b"hello"
    assert asked[0].startswith("GET /b%20c/%C3%BC.png?q=%C3%A4 HTTP/1.1\r\n")
    assert "Cookie" not in asked[0] and "Authorization" not in asked[0]
    relative, asked = serve(lambda s, r: (plain if "/there" in r else to("there"))(s, r))
    assert get(f"http://127.0.0.1:{relative}/here") == b"hello" and len(asked) == 2


def test_a_redirect_to_an_inner_address_is_not_followed(serve, outer):
    secret, asked = serve(plain, "127.0.0.2")
    for place in (f"http://127.0.0.2:{secret}/", f"//127.0.0.2:{secret}/", "http://2130706434/"):
        begin, _ = serve(to(place))
        said = fails(f"http://127.0.0.1:{begin}/", "inner network", "--allow-inner-url")
        assert "127.0.0.2" in said
    assert asked == []
    begin, _ = serve(to(f"http://127.0.0.2:{secret}/"))
    assert get(f"http://127.0.0.1:{begin}/", "inner") == b"hello"


def test_redirects_that_go_nowhere(serve, outer):
    port, asked = serve(to("/again"))
    fails(f"http://127.0.0.1:{port}/", "more than 5 times")
    assert len(asked) == 6
    for place in (
        "file:///etc/passwd",
        "ftp://example.org/",
        "data:image/png;base64,AA",
        "x:y",
    ):
        port, _ = serve(to(place))
        with pytest.raises(ImageError, match=r"leads to .*Only http and https"):
            get(f"http://127.0.0.1:{port}/")
    port, _ = serve(to("http://u:p@127.0.0.1/"))
    assert "u:p" not in fails(f"http://127.0.0.1:{port}/", "user name")


def test_a_name_is_resolved_once_and_asked_where_it_was_checked(serve, monkeypatch):
    """The second answer of a name server that changes its mind is never heard."""
    port, asked = serve(plain)
    resolve, answers = socket.getaddrinfo, iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _host, *a, **k: resolve(next(answers), *a, **k)
    )
    monkeypatch.setattr(download, "is_outer", lambda address: address == "127.0.0.1")
    assert get(f"http://changing.example:{port}/") == b"hello"
    assert f"Host: changing.example:{port}" in asked[0] and next(answers) == "127.0.0.2"


@pytest.mark.parametrize(
    "host",
    "127.0.0.1 localhost 127.1 2130706433 0x7f000001 0177.0.0.1 0.0.0.0 0 10.1.2.3 172.16.0.1 "
    "192.168.0.1 169.254.169.254 100.64.0.1 224.0.0.1 240.0.0.1 255.255.255.255 198.18.0.1 [::1] "
    "[::] [fe80::1] [fc00::1] [fec0::1] [ff02::1] [::ffff:127.0.0.1] [::ffff:10.0.0.1] "
    "[64:ff9b::7f00:1] [64:ff9b:1::1] [2002:7f00:1::] [2001:db8::1] [::127.0.0.1]".split(),
)
def test_inner_addresses_in_every_spelling(host, monkeypatch):
    def never(*_):
        raise AssertionError("it was asked")

    monkeypatch.setattr(socket.socket, "connect", never)
    try:
        said = fails(f"http://{host}/a.png")
    except AssertionError as error:  # a machine without IPv6 resolves none of it
        raise AssertionError(host) from error
    assert "inner network" in said or "resolution" in said or "family" in said


def test_outer_addresses_are_outer():
    for address in ("1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1"):
        assert is_outer(address)
    assert is_outer("64:ff9b::101:101") and is_outer("2002:101:101::1")


def test_the_command_line_says_how_to_allow_it(tmp_path, monkeypatch, capfd, serve):
    monkeypatch.chdir(tmp_path)
    port, asked = serve(plain)
    url = f"http://127.0.0.1:{port}/a.png"
    assert main(["solve", url, "How many?", "--allow-url", "-q"]) == 2
    assert "--allow-inner-url" in capfd.readouterr().err and asked == []
    assert main(["solve", url, "How many?", "--allow-inner-url", "-q"]) == 2
    assert "a text file" in capfd.readouterr().err and len(asked) == 1
