"""Real servers on loopback: S3 (moto), a web server, and a proxy before them that injects faults."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"
_HOP = {"connection", "transfer-encoding", "keep-alive"}
SLICE = 64 << 10


@dataclass
class Faults:
    """What the proxy does to the requests that match `pattern` (METHOD PATH), by their number from 1 on.

    `plan` maps a number to a fault: a status (`500`, `503`, `429`), `reset` (no answer), `lost` (done, but
    no answer), `cut` (the connection ends in mid-body). `every` does the same to each n-th.
    `bytes_per_second` slows every body down. `log` has every request as (method, path, range).
    """

    pattern: str = ".*"
    plan: dict[int, str] = field(default_factory=dict)
    every: dict[int, str] = field(default_factory=dict)
    bytes_per_second: float = 0.0
    before: Callable[[int], None] = lambda number: None
    log: list[tuple[str, str, str]] = field(default_factory=list)
    injected: list[str] = field(default_factory=list)
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, method: str, path: str, ranges: str) -> str:
        """The fault for this request, or "" for none."""
        with self._lock:
            self.log.append((method, path, ranges))
            if not re.search(self.pattern, f"{method} {path}"):
                return ""
            self._count += 1
            number = self._count
            fault = self.plan.get(number, "")
            fault = fault or next((what for n, what in self.every.items() if number % n == 0), "")
            if fault:
                self.injected.append(f"{fault} {method} {path}")
        self.before(number)
        return fault


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    target: tuple[str, int]

    def _forward(self) -> None:
        body = self._body()
        fault = self.faults.next(self.command, self.path, self.headers.get("Range", ""))
        if fault == "reset":
            self._reset()
            return
        if fault.isdigit():
            self._answer(int(fault), [("Content-Type", "application/xml")], _SLOW_DOWN)
            return
        upstream = HTTPConnection(*self.target)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        if fault == "lost":
            response.read()
            self._reset()
            return
        kept = [(k, v) for k, v in response.getheaders() if k.lower() not in _HOP]
        self._answer(response.status, kept, response.read(), cut=fault == "cut")
        upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self._send(body[: len(body) // 2] if cut else body)
        if cut:
            self._reset()

    def _send(self, body: bytes) -> None:
        rate = self.faults.bytes_per_second
        for start in range(0, len(body), SLICE):
            self.wfile.write(body[start : start + SLICE])
            if rate:
                time.sleep(min(SLICE, len(body) - start) / rate)

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on loopback for the length of the block; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def proxy(target: str, faults: Faults) -> Iterator[str]:
    """A proxy before the server `target` that injects `faults`; its URL."""
    host, _, port = target.rpartition("://")[2].partition(":")

    class Handler(_Proxy):
        pass

    Handler.faults, Handler.target = faults, (host, int(port))
    with serving(Handler) as url:
        yield url


@contextmanager
def web(
    files: dict[str, bytes], *, ranges: bool = True, etag: bool = True, log: list[str] | None = None
) -> Iterator[str]:
    """A web server of `files` by path (`/a.tar`), with or without Range and ETag; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if log is not None:
                log.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            body = files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if ranges else None
            size = len(body)
            if found:
                start, end = int(found[1]), min(int(found[2] or size - 1) + 1, size)
                body = body[start:end]
            self.send_response(206 if found else 200)
            if found:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            if etag:
                self.send_header("ETag", f'"{hash(files[self.path]):x}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            """Silent."""

    with serving(Handler) as url:
        yield url
