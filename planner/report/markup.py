"""Small pieces of HTML. Everything that comes from data goes through `escape` here or in the caller; nothing else is put together by hand."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["bar", "chart", "choices", "fact", "note", "number", "state", "swatch", "table"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, name: str, text: int = 1, sums: bool = False) -> str:
    """A table whose first `text` columns are words and the rest numbers. Cells are HTML, escaped by the caller; heads are the page's own words.

    With `sums` the last row stands apart.
    """

    def line(cells: Sequence[str], tag: str, kind: str = "") -> str:
        inner = "".join(
            f"<{tag}>{cell}</{tag}>" if index < text else f"<{tag} class='n'>{cell}</{tag}>"
            for index, cell in enumerate(cells)
        )
        return f"<tr{kind}>{inner}</tr>"

    body = [
        line(row, "td", " class='sum'" if sums and index == len(rows) - 1 else "") for index, row in enumerate(rows)
    ]
    return f"<div class='wide'><table class='{name}'><thead>{line(head, 'th')}</thead><tbody>{''.join(body)}</tbody></table></div>"


def fact(value: str, name: str, detail: str = "", *, title: str = "", bad: bool = False) -> str:
    """A headline number; all arguments are plain text."""
    more = f"<small>{escape(detail)}</small>" if detail else ""
    hint = f" title='{escape(title)}'" if title else ""
    return f"<div class='fact{' bad' if bad else ''}'{hint}><b>{escape(value)}</b>{escape(name)}{more}</div>"


def note(text: str) -> str:
    """A dim paragraph of plain text."""
    return f"<p class='dim'>{escape(text)}</p>"


def state(html: str, *, good: bool) -> str:
    """A marked line; HTML, escaped by the caller."""
    return f"<p class='state {'good' if good else 'warn'}'>{html}</p>"


def swatch(colour: str) -> str:
    """A square of a colour."""
    return f"<i class='swatch' style='background:{colour}'></i>"


def chart(name: str, height: int, label: str) -> str:
    """Where the script draws; `label` says in words what is seen there."""
    return f"<div class='chart' id='{name}' data-height='{height}' role='img' aria-label='{escape(label)}'></div>"


def bar(before: str = "", legend: str = "") -> str:
    """A line above a chart: HTML, then the legend that the script fills."""
    place = f"<span class='legend' data-legend='{legend}'></span>" if legend else ""
    return f"<div class='bar'>{before}{place}</div>"


def choices(name: str, options: Sequence[tuple[str, str]]) -> str:
    """Buttons of which one is on: (value, words)."""
    buttons = "".join(
        f"<button data-choice='{name}' data-value='{value}'{' class=on' if not index else ''}>{escape(words)}</button>"
        for index, (value, words) in enumerate(options)
    )
    return f"<span class='choices'>{buttons}</span>"


def number(value: float) -> str:
    """Whole numbers with separators, others to four significant digits: `1,234`, `0.01235`, `1.5e-07`."""
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1_000 else f"{value:.4g}"
