"""Lists of sources: a text or Parquet file, here or on an object store, that names sources and may give branch, domain and licence of each.

A text list is one location a line; `#` starts a comment line. When its first line is a header (`uri`, then any of `branch`, `domain`, `licence`,
with tabs or commas between), the lines have those columns. Parquet has the same columns. What is wrong is said with its line or row, before
anything is read. Price: a list is read whole.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator

from curation.addresses import has_scheme, is_url, path_of_uri
from curation.objects import Objects, explain
from schemas.errors import UsageError
from schemas.tables import BRANCHES

__all__ = ["read_list"]

_COLUMNS = ("branch", "domain", "licence")


def read_list(location: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(path or object address, own columns) of every line or row of the list at a local path or an object address.

    Raises:
        UsageError: no such list, or a line or row that makes no sense.
    """
    data = _bytes(location)
    if location.lower().endswith(".parquet"):
        yield from _parquet(data, location)
    else:
        yield from _text(data, location)


def _bytes(location: str) -> bytes:
    if is_url(location):
        folder, _, name = location.rpartition("/")
        try:
            return Objects(folder).read(name)
        except OSError as error:
            raise UsageError(f"sources: list {location!r} {explain(error)}; give a text or Parquet file") from error
    if not os.path.isfile(location):
        raise UsageError(f"sources: list {location!r} does not exist; give a text or Parquet file")
    with open(location, "rb") as stream:
        return stream.read()


def _text(data: bytes, where: str) -> Iterator[tuple[str, dict[str, str]]]:
    header: list[str] | None = None
    delimiter, first = "", True
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        text = os.fsdecode(line.rstrip(b"\r"))
        if not text.strip() or text.startswith("#"):
            continue
        place = f"sources: list {where!r}: line {number}"
        if first:
            first, delimiter = False, next((mark for mark in "\t," if text.startswith(f"uri{mark}")), "")
            if delimiter or text.strip() == "uri":
                header = _header(text.strip().split(delimiter or "\t"), place)
                continue
        row = {"uri": text} if header is None or not delimiter else _fields(text, delimiter, header, place)
        own = {name: value for name in _COLUMNS if (value := row.get(name))}
        for name, value in own.items():
            _check_cell(name, value, f"{place}, column {name!r}")
        _check_cell("uri", row["uri"], f"{place}, column 'uri'")
        yield _location(row["uri"], where), own


def _header(names: list[str], place: str) -> list[str]:
    unknown = [name for name in names if name not in ("uri", *_COLUMNS)]
    if unknown or len(set(names)) != len(names):
        raise UsageError(
            f"{place}: columns {names}, expected 'uri' and each of {', '.join(_COLUMNS)} at most once"
            f"{f'; unknown: {unknown}' if unknown else ''}; correct the header"
        )
    return names


def _fields(text: str, delimiter: str, header: list[str], place: str) -> dict[str, str]:
    values = next(csv.reader([text], delimiter=delimiter))
    if len(values) != len(header):
        raise UsageError(
            f"{place} has {len(values)} columns, the header has {len(header)} ({', '.join(header)}); quote a value that holds {delimiter!r}"
        )
    return dict(zip(header, values, strict=True))


def _parquet(data: bytes, where: str) -> Iterator[tuple[str, dict[str, str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
        table.validate(full=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"sources: list {where!r} is not readable Parquet ({error})") from error
    if "uri" not in table.column_names:
        raise UsageError(f"sources: list {where!r} has columns {table.column_names}, expected one named 'uri'")
    known = [name for name in _COLUMNS if name in table.column_names]
    for number, row in enumerate(table.select(["uri", *known]).to_pylist(), start=1):
        for name, value in row.items():
            _check_cell(name, value, f"sources: list {where!r}: row {number} (the first is 1), column {name!r}")
        yield _location(row["uri"], where), {name: row[name] for name in known if row[name] is not None}


def _check_cell(name: str, value: object, where: str) -> None:
    """UsageError unless the value is text that its column can hold; only `uri` may not be null."""
    if value is None and name != "uri":
        return
    if not isinstance(value, str):
        raise UsageError(f"{where} is {value!r} ({type(value).__name__}), expected text; correct the list")
    if name == "uri" and not value.strip():
        raise UsageError(f"{where} is empty, expected a path, a file:// URI or an object's address; correct the list")
    if name == "branch" and value not in BRANCHES:
        raise UsageError(f"{where} is {value!r}, expected one of {', '.join(BRANCHES)}, or null; correct the list")


def _location(text: str, where: str) -> str:
    """Relative paths in a list are relative to the list."""
    if "\0" in text:
        raise UsageError(f"sources: list {where!r}: {text!r} holds a zero byte, which no path has; correct the list")
    if is_url(text):
        return text
    if has_scheme(text) or os.path.isabs(text):
        return path_of_uri(text)
    if is_url(where):
        return f"{where.rpartition('/')[0]}/{text}"
    return os.path.abspath(os.path.join(os.path.dirname(where), text))
