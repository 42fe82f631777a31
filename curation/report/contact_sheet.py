"""The contact sheet as one PNG, so that a run can be looked at without a browser.

Sections one below the other, three strips a row, each with its reason in a line below. Price: at most 12 clips per section.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["draw_contact_sheet"]

_COLUMNS = 3
_PER_SECTION = 12
_CELL_WIDTH, _STRIP_HEIGHT, _TEXT_HEIGHT, _GAP = 480, 96, 16, 10
_HEADING_HEIGHT = 34


def draw_contact_sheet(
    sections: Sequence[tuple[str, Sequence[tuple[str, str]]]], thumbnails: Mapping[str, tuple[int, bytes]]
) -> bytes:
    """PNG of `sections` (heading, [(clip id, why)]) with the strips in `thumbnails` (clip id to number of frames and JPEG)."""
    from PIL import Image, ImageDraw, ImageFont

    shown = [(heading, clips[:_PER_SECTION]) for heading, clips in sections]
    row_height = _STRIP_HEIGHT + _TEXT_HEIGHT + _GAP
    height = sum(_HEADING_HEIGHT + -(-len(clips) // _COLUMNS) * row_height for _, clips in shown) + _GAP
    width = _COLUMNS * (_CELL_WIDTH + _GAP) + _GAP
    sheet = Image.new("RGB", (width, max(height, 40)), "#fbfbfa")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=18), ImageFont.load_default(size=11)
    top = 0
    for heading, clips in shown:
        draw.text((_GAP, top + 8), _printable(heading), fill="#1d2329", font=large)
        top += _HEADING_HEIGHT
        for place, (clip_id, why) in enumerate(clips):
            left = _GAP + place % _COLUMNS * (_CELL_WIDTH + _GAP)
            y = top + place // _COLUMNS * row_height
            if clip_id in thumbnails:
                sheet.paste(_strip(thumbnails[clip_id]), (left, y))
            draw.text((left, y + _STRIP_HEIGHT + 2), _printable(f"{clip_id[:8]} {why}"), fill="#1d2329", font=small)
        top += -(-len(clips) // _COLUMNS) * row_height
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _strip(thumbnail: tuple[int, bytes]) -> Image.Image:
    """As many frames of the strip as fit the cell at its height."""
    from PIL import Image

    num_frames, jpeg = thumbnail
    with Image.open(io.BytesIO(jpeg)) as image:
        strip = image.convert("RGB")
    frame_width = strip.width // num_frames
    scaled = max(round(frame_width * _STRIP_HEIGHT / strip.height), 1)
    fitting = max(min(num_frames, _CELL_WIDTH // scaled), 1)
    chosen = [round(place * (num_frames - 1) / max(fitting - 1, 1)) for place in range(fitting)]
    result = Image.new("RGB", (min(fitting * scaled, _CELL_WIDTH), _STRIP_HEIGHT))
    for place, index in enumerate(chosen):
        frame = strip.crop((index * frame_width, 0, (index + 1) * frame_width, strip.height))
        result.paste(frame.resize((scaled, _STRIP_HEIGHT)), (place * scaled, 0))
    return result


def _printable(text: Any) -> str:
    """The default font has Latin characters only."""
    return str(text).encode("latin-1", errors="replace").decode("latin-1")
