"""Is there a server that can do the work? Asked before a run starts: does it list the model, and does it take a picture with our fields?

Price: one small request a command, which loads a server's grammar and pictures code as a side effect.
"""

from __future__ import annotations

import asyncio
import io

from curation.captioning.client import api_key
from curation.captioning.prompt import request_body
from curation.captioning.settings import ServerSettings
from schemas.errors import ServiceError

__all__ = ["probe_server"]

_LIST_SECONDS = 10.0
_TRIAL = "trial-of-the-preflight"


def probe_server(settings: ServerSettings) -> str:
    """A line on what was found.

    Raises:
        ConfigError: the key's environment variable is not set.
        ServiceError: what the server lacks, in words.
    """
    key = api_key(settings)
    return asyncio.run(_probe(settings, key))


async def _probe(settings: ServerSettings, key: str) -> str:
    import openai

    where = f"the caption server {settings.base_url}"
    async with openai.AsyncOpenAI(
        base_url=settings.base_url, api_key=key, max_retries=0, timeout=settings.timeout_s
    ) as client:
        try:
            async with asyncio.timeout(_LIST_SECONDS):
                listed = sorted(str(model.id) for model in (await client.models.list()).data or [])
        except openai.APIStatusError as error:
            raise ServiceError(
                f"{where} answered HTTP {error.status_code} to GET /models ({error.message}); check caption.server.base_url "
                "and api_key_env"
            ) from error
        except (TimeoutError, openai.APIError, ValueError, TypeError, AttributeError) as error:
            said = (
                f"no answer within {_LIST_SECONDS:g} s" if isinstance(error, TimeoutError) else error.__cause__ or error
            )
            raise ServiceError(
                f"{where} does not list its models ({said}); start it, or correct caption.server.base_url. "
                "caption.captioner=tags needs no server"
            ) from error
        if settings.model not in listed:
            raise ServiceError(
                f"{where} has no model {settings.model!r}, it lists {', '.join(listed[:8]) or 'none'}; "
                "correct caption.server.model, or serve it under that name"
            )
        body = request_body(_TRIAL, "image", 0.0, [_grey_picture()], settings, refused=0)
        try:
            async with asyncio.timeout(settings.timeout_s):
                await client.post("/chat/completions", cast_to=str, body=body)
        except openai.APIStatusError as error:
            if error.status_code not in (429, 500, 502, 503, 504):
                raise ServiceError(
                    f"{where} refuses a trial picture with HTTP {error.status_code}: {error.message}; give a model that takes "
                    "pictures, or another caption.server.response_format or extra_body"
                ) from error
        except (TimeoutError, openai.APIError):
            pass  # a server that is slow or busy now is waited for in the phase
    return f"{settings.model} at {settings.base_url}"


def _grey_picture() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, format="JPEG")
    return buffer.getvalue()
