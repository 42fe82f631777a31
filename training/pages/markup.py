"""Pieces of the reports' pages: one HTML file without scripts, nothing fetched, its policy allowing nothing but its own style.

Everything from data is escaped here. Price: without a script pages do not react, beyond tooltips and folding.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

__all__ = ["details", "either", "fact", "facts", "legend", "note", "page", "panel", "percent", "table"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_MEDIA_POLICY = "; img-src data:; media-src data:"


def page(title: str, subtitle: str, parts: Sequence[str], *, dark: bool = False, media: bool = False) -> str:
    """A whole page; title and subtitle are plain text, parts are HTML.

    `dark`: dark where the reader's system is. `media`: pictures and videos may lie in the page itself.
    """
    policy = _POLICY + (_MEDIA_POLICY if media else "")
    style = resources.files("training.pages").joinpath("page.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            f'<!doctype html><html lang="en"{" class=both" if dark else ""}><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)}</title>',
            f"<style>{style}</style></head><body>",
            f"<header><h1>{escape(title)}</h1><span class='dim'>{escape(subtitle)}</span></header><main>",
            *parts,
            "</main></body></html>\n",
        ]
    )


def fact(value: str, name: str, detail: str = "", *, title: str = "", mood: str = "") -> str:
    """A headline number; all arguments are plain text. `mood`: good, bad, or nothing."""
    more = f"<small>{escape(detail)}</small>" if detail else ""
    hint = f" title='{escape(title)}'" if title else ""
    return f"<div class='fact{f' {mood}' if mood else ''}'{hint}><b>{escape(value)}</b>{escape(name)}{more}</div>"


def facts(found: Sequence[str]) -> str:
    """A row of facts."""
    return f"<div class='facts'>{''.join(found)}</div>"


def note(text: str) -> str:
    """A dim paragraph of plain text."""
    return f"<p class='dim'>{escape(text)}</p>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(colour, plain words) of a picture."""
    inner = "".join(f"<span><i style='background:{colour}'></i>{escape(words)}</span>" for colour, words in entries)
    return f"<div class='legend'>{inner}</div>"


def details(summary: str, html: str) -> str:
    """HTML that is folded away under plain words."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1) -> str:
    """A table of plain text whose first `text` columns are words and the rest numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{'' if index < text else ' class=n'}>{escape(cell)}</{tag}>" for index, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"


def panel(html: str) -> str:
    """A picture on paper."""
    return f"<div class='wide'>{html}</div>"


def either(name: str, first: tuple[str, str], second: tuple[str, str]) -> str:
    """Two pieces of (plain words, HTML) of which one is shown, to be switched without a script; `name` is unique on the page."""
    parts = []
    for index, (words, _) in enumerate((first, second)):
        checked = "" if index else " checked"
        parts.append(f"<input type='radio' name='{name}' id='{name}-{index}'{checked}>")
        parts.append(f"<label for='{name}-{index}'>{escape(words)}</label>")
    parts += [f"<div class='first'>{first[1]}</div>", f"<div class='second'>{second[1]}</div>"]
    return f"<div class='either'>{''.join(parts)}</div>"


def percent(share: float) -> str:
    """`percent(0.0123) == "1.2 %"`."""
    return f"{100 * share:.1f} %"
