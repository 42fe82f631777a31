"""Settings of the captioner that asks a server, and which of them decide what it answers.

Only those are in the fingerprint: another address, more requests in flight or a longer deadline caption nothing again. The key of the server is
never in a config; `api_key_env` names the environment variable that holds it. Price: a server that serves other weights under the same
model name is not noticed; give it another name.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from schemas.config import StrictConfig

__all__ = ["ServerSettings"]

_ADDRESS = ("base_url", "api_key_env")
_PACE = ("max_in_flight", "clips_per_unit", "timeout_s", "attempts", "backoff_s", "max_backoff_s", "outage_s")
_HOW_TO_ASK = frozenset((*_ADDRESS, *_PACE))
"""Fields that decide when and whether an answer comes, not what it says."""


class ServerSettings(StrictConfig):
    """An OpenAI-compatible chat server that takes pictures: vLLM, NeMo Curator's inference server and others."""

    base_url: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """Address up to and with the version, for example http://127.0.0.1:8000/v1; every worker must reach it."""
    model: str | None = None
    """Name under which the server lists the model (`GET /v1/models`)."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key, set for the command and on every node; null: the server wants none."""
    num_frames: int = Field(default=8, ge=1, le=64)
    """Frames of a video clip that the model sees, in the middle of equal parts of the clip; an image is one."""
    frame_long_side: int = Field(default=768, ge=64, le=4096)
    """Longer side of a frame, pixels. Smaller pictures are not enlarged."""
    response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    """How the server is held to the fields: by a schema, to any JSON, or by the prompt alone. Whatever it is, answers are checked here."""
    temperature: float = Field(default=0.2, ge=0, le=2)
    """Sampling temperature of the first answer."""
    temperature_step: float = Field(default=0.2, ge=0, le=1)
    """Added for each answer that was refused; at most 1 in all, or `temperature` if that is more."""
    seed: int = 0
    """With the clip id and the number of refused answers it gives the seed of a request."""
    max_tokens: int = Field(default=1024, ge=64)
    """Longest answer, tokens; 250 words and the labels are about 500."""
    word_tolerance: float = Field(default=0.2, ge=0, lt=1)
    """Long captions are asked for with 150 to 250 words, short ones with 15 to 25. Answers outside by more than this share are asked for again."""
    on_word_range: Literal["accept", "refuse"] = "accept"
    """A clip whose answers were all outside: take the last one and write a note into the commit, or leave the clip without a caption."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More keys for the body of a request, for example {chat_template_kwargs: {enable_thinking: false}} of vLLM."""
    max_in_flight: int = Field(default=32, ge=1, le=1024)
    """Requests that one worker has open at the same time; workers are `ray.caption.workers`."""
    clips_per_unit: int = Field(default=128, ge=1)
    """Sources are handed to a worker together until they have this many clips: some times `max_in_flight`, else workers wait for the last answers."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of one request, from sending to the last byte."""
    attempts: int = Field(default=4, ge=1, le=20)
    """A clip that got this many bad answers, errors or no answer in time stays without a caption and has the reason in `outcomes`."""
    backoff_s: float = Field(default=1.0, gt=0)
    """Wait before the second try; doubles with each further one. A longer `Retry-After` of the server is honoured."""
    max_backoff_s: float = Field(default=60.0, gt=0)
    """Longest wait of our own between two tries."""
    outage_s: float = Field(default=300.0, gt=0)
    """How long the server may be gone, or turn one request away as busy (429, 503), before the phase stops; no clip is blamed for either."""

    def identity(self) -> dict[str, Any]:
        """The fields that decide what the captions are."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in _HOW_TO_ASK}

    def work_seconds(self, num_clips: int) -> float:
        """Upper bound of the time for the requests of so many clips, for the deadline of the worker process."""
        rounds = -(-num_clips // self.max_in_flight)
        return self.outage_s + rounds * self.attempts * (self.timeout_s + self.max_backoff_s)
