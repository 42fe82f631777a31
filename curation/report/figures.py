"""Pictures of clips for the page: a strip of frames, what was decided, and where the clip comes from; a click tells its whole story.

A clip may stand in several sections and levels, so its strip and its story are in the page once, as JSON, and a figure only names them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.decide import KEEP
from curation.explain import Stories

__all__ = ["Figures", "json_block", "rows_of", "why"]

Row = Mapping[str, Any]


class Figures:
    """Figures of the clips that the page shows anywhere."""

    def __init__(self, tables: Mapping[str, pa.Table], stories: Stories, clip_ids: Iterable[str]) -> None:
        shown = set(clip_ids)
        self._clips = {row["clip_id"]: row for row in rows_of(tables["clips"], shown)}
        self._stories = stories
        self.thumbnails = {
            row["clip_id"]: (row["num_frames"], row["jpeg"]) for row in rows_of(tables["thumbnails"], shown)
        }
        labels = rows_of(tables["labels"], shown) if "labels" in tables else []
        self._captions = {row["clip_id"]: row["caption_short"] for row in labels}

    def figure(self, clip_id: str, decision: Row, note: str = "") -> str:
        """One clip; `note` stands before the decision."""
        clip = self._clips.get(clip_id)
        if clip is None:
            return f"<figure><figcaption>{escape(clip_id)}, a clip of an earlier run</figcaption></figure>"
        crop = clip["crop"]
        size = f"{crop['right'] - crop['left']}x{crop['bottom'] - crop['top']} of {clip['source_width']}x{clip['source_height']}"
        span = f"{clip['start_us'] / 1e6:.2f} to {clip['end_us'] / 1e6:.2f} s" if clip["kind"] == "video" else "image"
        side = "kept" if decision["decision"] == KEEP else "cut"
        name = clip["uri"].rsplit("/", 1)[-1]
        return (
            f"<figure class='{side}' data-clip='{escape(clip_id)}' tabindex='0'>"
            f"<img alt='frames of {escape(clip_id)}' data-strip='{escape(clip_id)}'><figcaption>"
            f"<div class='why'>{escape(note + why(decision))}</div><div>{escape(str(self._captions.get(clip_id, '')))}</div>"
            f"<div class='dim'>{escape(name)} · {span} · {size} · {escape(clip_id)}</div></figcaption></figure>"
        )

    def data_blocks(self) -> str:
        """Strips and stories of every clip, as JSON that the script reads."""
        strips = {clip_id: base64.b64encode(jpeg).decode("ascii") for clip_id, (_, jpeg) in self.thumbnails.items()}
        stories = {clip_id: self._stories.of(clip_id) for clip_id in sorted(self._clips)}
        return json_block("strips", strips) + json_block("stories", stories)


def json_block(name: str, values: Mapping[str, str]) -> str:
    """A block of data that no markup inside it can end."""
    text = json.dumps(values, sort_keys=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f"<script type='application/json' id='{escape(name)}'>{text}</script>\n"


def why(decision: Row) -> str:
    """`keep`, or the reason with measure, value and limit: `static (motion 0.004, limit 0.05)`."""
    if decision["measure"] is None or decision["value"] is None:
        return str(decision["decision"])
    limit = f", limit {_number(decision['limit'])}" if decision["limit"] is not None else ""
    return f"{decision['decision']} ({decision['measure']} {_number(decision['value'])}{limit})"


def rows_of(table: pa.Table, clip_ids: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of these clips."""
    wanted = pa.array(sorted(clip_ids), pa.string())
    return table.filter(pc.is_in(table["clip_id"], wanted)).to_pylist()


def _number(value: float) -> str:
    """Three significant digits, and no exponent for whole pixels."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
