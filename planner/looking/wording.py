"""Numbers as people read them: sizes, spans of time, shares, each with its unit. Decimal units throughout: 1 MB is 10^6 bytes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["folded", "share_words", "size_words", "span_words", "table_lines"]

COLUMNS = 100
"""Width that reports are folded to."""

_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_HOUR = 3600.0
_MINUTE = 60.0


def size_words(num_bytes: float) -> str:
    """`size_words(1_234_567) == "1.235 MB"`, `size_words(12) == "12 bytes"`."""
    for unit, name in _SIZES:
        if abs(num_bytes) >= unit:
            return f"{num_bytes / unit:.3f} {name}"
    return f"{num_bytes:.0f} bytes"


def span_words(seconds: float) -> str:
    """`span_words(0.0421) == "42.1 ms"`, `span_words(7200) == "2.000 h"`."""
    if abs(seconds) >= 2 * _HOUR:
        return f"{seconds / _HOUR:.3f} h"
    if abs(seconds) >= 2 * _MINUTE:
        return f"{seconds / _MINUTE:.2f} min"
    if abs(seconds) >= 1 or seconds == 0:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.3g} ms"


def share_words(part: float, whole: float) -> str:
    """`share_words(1, 8) == "12.50 %"`; of nothing it is 0."""
    return f"{part / whole if whole else 0.0:.2%}".replace("%", " %")


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: Sequence[int] = ()) -> list[str]:
    """Aligned columns, numbers to the right and `text_columns` to the left; two blanks before each line."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = []
    for row in cells:
        padded = [
            text.ljust(width) if column in text_columns else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(padded)).rstrip())
    return lines


def folded(lines: Iterable[str]) -> Iterator[str]:
    """Lines of at most 100 columns: longer ones go on, indented a little more, in the next line."""
    for line in lines:
        if len(line) <= COLUMNS:
            yield line
            continue
        text = line.lstrip()
        indent = " " * (len(line) - len(text))
        yield from textwrap.wrap(
            text, COLUMNS, initial_indent=indent, subsequent_indent=indent + "    ", break_on_hyphens=False
        )
