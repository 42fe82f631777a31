"""Addresses of files: local paths, `file://` URIs and object addresses, and the percent-encoded form that goes into tables.

File names are data: not every name is UTF-8, and any byte may be in one, so tables hold URIs in which every byte that is not unreserved is
percent-encoded. In configs and lists a `file://` URI is percent-encoded, while an object address is written as its store prints it, unencoded.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from curation.objects import is_url, split_url
from schemas.errors import UsageError

__all__ = ["has_scheme", "is_url", "path_of_uri", "uri_of_location", "uri_of_path"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def has_scheme(text: str) -> bool:
    """Whether text starts like a URI of any scheme."""
    return _SCHEME.match(text) is not None


def uri_of_path(path: str | os.PathLike[str]) -> str:
    """`file://` URI of a path, every byte that is not unreserved percent-encoded."""
    return "file://" + quote_from_bytes(os.path.abspath(os.fsencode(path)))


def uri_of_location(location: str) -> str:
    """URI of a local path or an object address.

    >>> uri_of_location("s3://bucket/a b.mp4")
    's3://bucket/a%20b.mp4'
    """
    if not is_url(location):
        return uri_of_path(location)
    bucket, key = split_url(location)
    return f"{bucket}/{quote_from_bytes(os.fsencode(key))}"


def path_of_uri(text: str) -> str:
    """Local path of a `file://` URI or of a plain path; UsageError for any other scheme."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        return os.path.abspath(text)
    if scheme[1].lower() != "file":
        raise UsageError(
            f"source {text!r}: scheme {scheme[1]!r} is not one that is read; expected a local path, file://, s3:// or gs://"
        )
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise UsageError(
            f"source {text!r}: expected file:///absolute/path with every special character percent-encoded"
        )
    return os.fsdecode(unquote_to_bytes(parts.path))
