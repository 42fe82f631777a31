"""One clip's conversation with the server: asks, checks the answer, asks again, and ends with an answer or with a reason.

What goes wrong is told apart by whose fault it is. A bad answer counts against the clip and is sampled anew, with the next seed and a higher
temperature. An error, a broken connection or no answer in time is asked again unchanged, so the network never changes a result; it counts too,
unless the server turns out to be gone. Busy answers (429, 503) and a server that is gone are waited for, and after `outage_s` the phase stops:
no clip is blamed. Waits double, are spread by a number drawn from the clip id, and are never shorter than `Retry-After`. Price: a server that
dies is noticed only after the tries of one clip.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from curation.captioning.answer import AnswerError, ParsedAnswer, parse_answer
from curation.captioning.frames import ClipFrames
from curation.captioning.prompt import request_body
from curation.captioning.settings import ServerSettings
from schemas.errors import ConfigError, ServiceError
from schemas.ids import fingerprint

__all__ = ["CaptionClient", "UncaptionedError", "api_key", "wait_seconds"]

_PROBE_SECONDS = 10.0
_MOST_OUTAGES = 3
"""A clip that was in flight in so many outages is taken to be their cause."""


class UncaptionedError(Exception):
    """This clip stays without a caption; the text is the reason that goes into a table."""


@dataclass
class _FaultError(Exception):
    """The server failed at one request. `busy`: it said to come back later."""

    text: str
    busy: bool = False
    retry_after_s: float = 0.0


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


def api_key(settings: ServerSettings) -> str:
    """The key from the environment; a word that servers without keys ignore when none is named.

    Raises:
        ConfigError: the variable is not set here.
    """
    if settings.api_key_env is None:
        return "none"
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise ConfigError(
            f"caption.server.api_key_env: the environment variable {settings.api_key_env} is not set in this process; "
            "set it for the command and on every node, or give null for a server without keys"
        )
    return key


def wait_seconds(clip_id: str, failures: int, retry_after_s: float, settings: ServerSettings) -> float:
    """Wait before the next try after so many failures (from 1): doubling, spread over the upper half, at least `retry_after_s`."""
    longest = min(settings.max_backoff_s, settings.backoff_s * 2.0 ** min(failures - 1, 30))
    spread = int(fingerprint([clip_id, failures], length=8), 16) / 0xFFFFFFFF
    return max(min(retry_after_s, settings.outage_s), longest * (0.5 + 0.5 * spread))


class CaptionClient:
    """Connections to one server; use it as an async context manager, in one event loop."""

    def __init__(self, settings: ServerSettings, key: str) -> None:
        from openai import AsyncOpenAI

        self._settings = settings
        self._client = AsyncOpenAI(
            base_url=settings.base_url, api_key=key, max_retries=0, timeout=settings.timeout_s + _PROBE_SECONDS
        )
        self._waiting = asyncio.Lock()
        self._seen_alive = float("-inf")

    async def __aenter__(self) -> CaptionClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def caption(self, shown: ClipFrames) -> ParsedAnswer:
        """The answer for one clip.

        Raises:
            UncaptionedError: with the reason.
            ServiceError: the server is gone, busy for too long, or refuses everybody.
        """
        settings = self._settings
        tries = refused = failures = outages = 0
        busy_since: float | None = None
        noted: ParsedAnswer | None = None
        while True:
            try:
                parsed = await self._ask(shown, refused)
                if parsed.note is None:
                    return parsed
                if settings.on_word_range == "accept":
                    noted = parsed
                raise AnswerError(parsed.note)
            except AnswerError as error:
                tries, refused, reason = tries + 1, refused + 1, str(error)
                if tries < settings.attempts:
                    continue
            except _FaultError as fault:
                failures, reason = failures + 1, fault.text
                if fault.busy:
                    busy_since = time.monotonic() if busy_since is None else busy_since
                    self._refuse_long_busy(busy_since, fault.text)
                else:
                    tries, busy_since = tries + 1, None
                if tries < settings.attempts:
                    await asyncio.sleep(wait_seconds(shown.clip_id, failures, fault.retry_after_s, settings))
                    continue
                if outages < _MOST_OUTAGES and not await self._is_alive():
                    await self._until_alive(fault.text)
                    tries, outages = 0, outages + 1
                    continue
            if noted is not None:
                return noted
            raise UncaptionedError(f"caption server: {tries} tries, the last: {reason}")

    async def _ask(self, shown: ClipFrames, refused: int) -> ParsedAnswer:
        """One request and its checked answer."""
        import openai

        settings = self._settings
        body = request_body(shown.clip_id, shown.kind, shown.seconds, shown.jpegs, settings, refused=refused)
        headers = {"X-Request-Id": f"{shown.clip_id}-{refused}"}
        try:
            async with asyncio.timeout(settings.timeout_s):
                # post, not chat.completions.create: that one walks through every body, which is CPU time for nothing
                text = await self._client.post(
                    "/chat/completions", cast_to=str, body=body, options={"headers": headers}
                )
        except (TimeoutError, openai.APITimeoutError) as error:
            raise _FaultError(f"no answer within {settings.timeout_s:g} s") from error
        except openai.APIStatusError as error:
            raise _of_status(error, settings) from error
        except openai.APIConnectionError as error:
            raise _FaultError(f"connection: {error.__cause__ or error}") from error
        try:
            choice = _Completion.model_validate_json(text).choices[0]
        except ValidationError as error:
            raise AnswerError(f"not a chat completion: {error.errors()[0]['msg']}") from error
        if choice.finish_reason == "content_filter" or choice.message.refusal:
            raise UncaptionedError(f"caption server: the model refused: {choice.message.refusal or 'content filter'}")
        if choice.finish_reason == "length":
            raise AnswerError(f"the answer was cut off at {settings.max_tokens} tokens (caption.server.max_tokens)")
        self._seen_alive = time.monotonic()
        return parse_answer(choice.message.content or "", shown.clip_id, shown.kind, settings)

    def _refuse_long_busy(self, busy_since: float, text: str) -> None:
        if time.monotonic() - busy_since > self._settings.outage_s:
            raise ServiceError(
                f"the caption server {self._settings.base_url} turned one request away for more than "
                f"{self._settings.outage_s:g} s ({text}); lower caption.server.max_in_flight or ray.caption.workers"
            )

    async def _is_alive(self) -> bool:
        """Whether the server lists its models, or says with a status below 500 that it will not."""
        import openai

        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._client.models.with_raw_response.list()
        except openai.APIStatusError as error:
            return error.status_code < 500
        except (TimeoutError, openai.APIConnectionError):
            return False
        return True

    async def _until_alive(self, text: str) -> None:
        """Wait until the server answers again; one of the waiting clips asks for all."""
        settings, since = self._settings, time.monotonic()
        async with self._waiting:
            if self._seen_alive > since:
                return
            while not await self._is_alive():
                if time.monotonic() - since > settings.outage_s:
                    raise ServiceError(
                        f"the caption server {settings.base_url} has not answered for {settings.outage_s:g} s ({text}); "
                        "start it again, or correct caption.server.base_url"
                    )
                await asyncio.sleep(min(settings.backoff_s, _PROBE_SECONDS))
            self._seen_alive = time.monotonic()


def _of_status(error: Any, settings: ServerSettings) -> Exception:
    """What an HTTP status means for this clip."""
    status = error.status_code
    said = " ".join(str(error.message).removeprefix(f"Error code: {status} - ").split())
    text = f"HTTP {status}: {said[:300]}"
    if status in (401, 403, 404):
        return ServiceError(
            f"the caption server {settings.base_url} answered {text}; check caption.server.base_url, model "
            f"({settings.model}) and api_key_env"
        )
    if status in (429, 503):
        return _FaultError(text, busy=True, retry_after_s=_retry_after(error.response.headers.get("retry-after")))
    if status >= 500 or status in (408, 409):
        return _FaultError(text, retry_after_s=_retry_after(error.response.headers.get("retry-after")))
    return UncaptionedError(f"caption server: {text}")


def _retry_after(header: str | None) -> float:
    """Seconds of a `Retry-After` header: a number or a date; 0 when there is none that can be read."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
