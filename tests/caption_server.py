"""A local server that speaks the chat completions protocol and misbehaves as it is told; for tests and `benchmarks/captions.py`.

It sees no pictures: what it answers is computed from the bytes of the request, so an answer that lands on another clip shows. `behave` says for
each request, by clip id and how often that clip was asked before, what to do; see `BEHAVIOURS`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["BEHAVIOURS", "CaptionServer", "caption_server", "picture_word"]

BEHAVIOURS = (
    "ok",
    "prose",
    "no_completion",
    "missing_field",
    "wrong_id",
    "empty",
    "no_content",
    "cut_off",
    "half_body",
)
BEHAVIOURS += ("429", "500", "400", "401", "dropped", "refused", "filtered", "too_short", "fenced", "never")


def picture_word(jpegs: Sequence[bytes]) -> str:
    """The word that the server makes of the pictures of a clip."""
    return f"pictures{hashlib.sha256(b''.join(jpegs)).hexdigest()[:12]}"


class CaptionServer:
    """State of one server; change `behave`, `labels` and `delay` before requests come."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.behave: Callable[[str, int], str] = lambda clip_id, asked: "ok"
        self.labels: Callable[[str], dict[str, Any]] = lambda clip_id: {}
        self.delay: Callable[[str], float] = lambda clip_id: 0.0
        self.alive = True
        """False: every connection is cut, as from a process that is gone."""
        self.retry_after = "1"
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: dict[str, list[float]] = {}
        """Clip id to the moments of its requests."""
        self.answered: list[str] = []
        """Clip ids in the order of the good answers."""
        self.most_in_flight = 0
        self.url = ""
        self.lock = threading.Lock()
        self.ending = threading.Event()
        self._asked: Counter[str] = Counter()
        self._in_flight = 0

    def begin(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[str, str]:
        """Note a request; its clip id and what to do with it."""
        clip_id = str(re.match(r"clip_id: (\S+)", body["messages"][1]["content"][0]["text"]).group(1))
        with self.lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.setdefault(clip_id, []).append(time.monotonic())
            asked = self._asked[clip_id]
            self._asked[clip_id] += 1
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        return clip_id, self.behave(clip_id, asked)

    def end(self) -> None:
        with self.lock:
            self._in_flight -= 1

    def answer(self, body: dict[str, Any], clip_id: str) -> dict[str, Any]:
        """A whole answer for the pictures of the request."""
        content = body["messages"][1]["content"]
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        word = picture_word([base64.b64decode(url.partition(",")[2]) for url in urls])
        long = f"The scene shows {word} in daylight. " + " ".join(["Many plain words follow here."] * 36)
        short = f"A short caption of {word} with as many words as were asked for in the prompt of the captioner."
        answer = {"clip_id": clip_id, "caption_long": long, "caption_short": short, "subject": "object"}
        answer |= {"style": "live action", "quality": "high", "watermark": False, "nsfw": False, "padded": False}
        if "multi_scene" in body["messages"][0]["content"]:
            answer |= {"action": "slow", "camera_move": "static", "multi_scene": False, "timelapse": False}
        return answer | self.labels(clip_id)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *arguments: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        state: CaptionServer = self.server.state
        if not state.alive:
            self.close_connection = True
            return
        self._send(200, {"object": "list", "data": [{"id": state.model, "object": "model"}]})

    def do_POST(self) -> None:
        state: CaptionServer = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not state.alive:
            self.close_connection = True
            return
        clip_id, behaviour = state.begin(body, {name.lower(): value for name, value in self.headers.items()})
        try:
            time.sleep(state.delay(clip_id))
            self._behave(state, body, clip_id, behaviour)
        except BrokenPipeError:
            pass
        finally:
            state.end()

    def _behave(self, state: CaptionServer, body: dict[str, Any], clip_id: str, behaviour: str) -> None:
        assert behaviour in BEHAVIOURS, behaviour
        if behaviour == "never":
            state.ending.wait()
            self.close_connection = True
        elif behaviour == "dropped":
            self.close_connection = True
        elif behaviour in ("429", "500", "400", "401"):
            headers = {"Retry-After": state.retry_after} if behaviour == "429" else {}
            self._send(int(behaviour), {"error": {"message": f"planned {behaviour}"}}, headers)
        elif behaviour == "no_completion":
            self._send(200, {"object": "chat.completion", "choices": []})
        elif behaviour == "half_body":
            self._send_bytes(200, b'{"choices": [', {}, length=5000)
            self.close_connection = True
        else:
            self._send(200, _completion(state.answer(body, clip_id), behaviour))
            with state.lock:
                state.answered.append(clip_id)

    def _send(self, status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self._send_bytes(status, data, headers or {}, length=len(data))

    def _send_bytes(self, status: int, data: bytes, headers: dict[str, str], *, length: int) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _completion(answer: dict[str, Any], behaviour: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    finish = "stop"
    if behaviour == "wrong_id":
        answer["clip_id"] = "0" * 24
    elif behaviour == "missing_field":
        del answer["quality"]
    elif behaviour == "too_short":
        answer["caption_long"] = "The scene is short."
    text = json.dumps(answer)
    if behaviour == "prose":
        text = f"Here is the caption: {text}"
    elif behaviour == "fenced":
        text = f"```json\n{text}\n```"
    elif behaviour == "empty":
        text = ""
    elif behaviour == "cut_off":
        text, finish = text[:200], "length"
    elif behaviour == "refused":
        message["refusal"] = "I cannot help with that"
    elif behaviour == "filtered":
        finish = "content_filter"
    message["content"] = None if behaviour in ("no_content", "refused") else text
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    state: CaptionServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is nothing to report."""


@contextmanager
def caption_server(model: str = "tiny-vision", port: int = 0) -> Iterator[CaptionServer]:
    """A running server; its threads end with the block."""
    state = CaptionServer(model)
    server = _Server(("127.0.0.1", port), _Handler)
    server.state = state
    server.block_on_close = False
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()
