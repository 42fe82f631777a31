"""A local S3 server for tests: moto's own server in a process of its own, behind a switch that can make single requests fail.

Started by the fixture `s3_server`; it ends with the tests, however they end. Faults are set by putting JSON to `/-/faults`: a list of
{"path": part of the key, "method": GET, "status": 503, "times": 2}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
_REASONS = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


class Faults:
    """WSGI middleware: answers with an error as often as it was told to, and counts requests by method and path."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._faults: list[dict[str, Any]] = []
        self._seen: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/-/faults":
            self._faults = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            return self._answer(start_response, "200 OK", b"")
        if path == "/-/seen":
            seen, self._seen = self._seen, []
            return self._answer(start_response, "200 OK", json.dumps(seen).encode())
        self._seen.append(f"{method} {path}")
        for fault in self._faults:
            if fault["path"] in path and fault["method"] == method and fault["times"] > 0:
                fault["times"] -= 1
                reason = _REASONS[fault["status"]]
                body = f"<Error><Code>{reason}</Code><Message>{reason} by the test</Message></Error>".encode()
                return self._answer(start_response, f"{fault['status']} {reason}", b"" if method == "HEAD" else body)
        return self._app(environ, start_response)

    @staticmethod
    def _answer(start_response: Callable[..., Any], status: str, body: bytes) -> Iterable[bytes]:
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


class S3Server:
    """The running server, as tests see it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}

    def fail(self, *faults: dict[str, Any]) -> None:
        """Set the faults, in place of those before."""
        request = urllib.request.Request(f"{self.endpoint}/-/faults", json.dumps(faults).encode(), method="POST")
        urllib.request.urlopen(request, timeout=30).close()

    def seen(self) -> list[str]:
        """Requests since the last call: `GET /bucket/key`."""
        with urllib.request.urlopen(f"{self.endpoint}/-/seen", timeout=30) as answer:
            found: list[str] = json.load(answer)
        return found


@contextmanager
def serve() -> Iterator[S3Server]:
    """Start a server on a free port of the loopback address; it ends with the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [sys.executable, str(Path(__file__).resolve())]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield S3Server(process.stdout.readline().strip())
        finally:
            process.kill()


def main() -> None:
    """Serve until standard input ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)  # type: ignore[arg-type]
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
