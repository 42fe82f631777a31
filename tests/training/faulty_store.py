"""A proxy in front of the local S3 server that fails as stores and networks do: stalls, resets, breaks off in a body, trickles, answers 503.

A fault is (kind, part of the path, after how many bytes of the body, how often); reads alone are hit. The bytes that pass are the server's own.
"""

from __future__ import annotations

import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal


@dataclass
class Fault:
    """What goes wrong."""

    kind: Literal["stall", "reset", "break", "trickle", "slow_down"]
    path: str
    after_bytes: int = 0
    times: int = 1 << 30


@dataclass
class FaultyStore:
    """The running proxy, as tests see it."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    """(key, first byte, byte after the last) of every range that was asked for."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def fault_of(self, path: str) -> Fault | None:
        """The fault that hits this request."""
        with self.lock:
            for fault in self.faults:
                if fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        store: FaultyStore = self.server.store
        span = self.headers.get("Range")
        if span:
            first, last = span.removeprefix("bytes=").split("-")
            with store.lock:
                store.ranges.append((self.path.rpartition("/")[2], int(first), int(last) + 1))
        fault = store.fault_of(self.path)
        if fault is not None and fault.kind == "slow_down":
            body = b"<Error><Code>SlowDown</Code><Message>by the test</Message></Error>"
            self._answer(503, {"Content-Type": "application/xml"}, body)
            return
        status, headers, body = self._upstream()
        if fault is None:
            self._answer(status, headers, body)
            return
        self.close_connection = True
        with suppress(OSError):
            if fault.kind == "reset" and not fault.after_bytes:
                self._reset()
                return
            self._begin(status, headers, len(body))
            self.wfile.write(body[: fault.after_bytes])
            self.wfile.flush()
            if fault.kind == "stall":
                store.ended.wait(60)
            elif fault.kind == "reset":
                self._reset()
            elif fault.kind == "trickle":
                for byte in body[fault.after_bytes :]:
                    if store.ended.wait(0.05):
                        return
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()

    do_HEAD = do_GET

    def _upstream(self) -> tuple[int, dict[str, str], bytes]:
        headers = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
        request = urllib.request.Request(self.server.upstream + self.path, headers=headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def _begin(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in headers.items():
            if key.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                self.send_header(key, value)
        told = headers.get("Content-Length", str(length)) if self.command == "HEAD" else str(length)
        self.send_header("Content-Length", told)
        self.end_headers()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        with suppress(OSError):
            self._begin(status, headers, len(body))
            if self.command != "HEAD":
                self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients that give up are what the tests are about."""


@contextmanager
def proxy(upstream: str) -> Iterator[FaultyStore]:
    """Start on a free port of the loopback address; ends with the block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    store = FaultyStore(f"http://127.0.0.1:{server.server_port}")
    server.store, server.upstream = store, upstream  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
