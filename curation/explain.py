"""The whole story of one clip, as text: where it came from, what was measured, what each level said and why, its copies, captions and shards.

Everything is read from the tables of the run and judged with the thresholds at hand, so a clip can be asked about under thresholds that were never
run. Where the last decision on disk was made with others, both are told. Price: the tables are read whole, seconds for a million clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.decide import KEEP, failures
from curation.thresholds import DecideSettings
from schemas.errors import UsageError
from schemas.tables import ADMISSIONS, SCORES

__all__ = ["Stories", "explain"]

_LABEL_TEXTS = ("caption_short", "caption_long", "subject", "style", "action", "camera_move", "quality")
_LABEL_FLAGS = ("watermark", "nsfw", "padded", "multi_scene", "timelapse")
_MOST_LISTED = 20

Row = dict[str, Any]


class Stories:
    """Stories of some clips; rows of the tables are looked up once for all of them.

    Args:
        tables: sources, clips, pairs, decisions; labels, outcomes where they exist.
        samples: set name to its SAMPLES.
        clip_ids: whose stories will be asked for; also their copies are looked up.
    """

    def __init__(
        self,
        tables: Mapping[str, pa.Table],
        samples: Mapping[str, pa.Table],
        settings: DecideSettings,
        clip_ids: Iterable[str],
    ) -> None:
        wanted = set(clip_ids)
        clips = _of(tables["clips"], "clip_id", wanted)
        self._clips = {row["clip_id"]: row for row in clips.to_pylist()}
        uris = {row["uri"] for row in self._clips.values()}
        self._sources = {row["uri"]: row for row in _of(tables["sources"], "uri", uris).to_pylist()}
        self._twins = _grouped(_of(tables["sources"], "same_content_as", uris).to_pylist(), "same_content_as")
        self._decisions = _grouped(_of(tables["decisions"], "clip_id", wanted).to_pylist(), "clip_id")
        self._settings = settings
        labels = _of(tables["labels"], "clip_id", wanted) if "labels" in tables else None
        self._labels = {} if labels is None else {row["clip_id"]: row for row in labels.to_pylist()}
        failed = failures(clips, labels, settings).rows(named=True)
        self._failures = _grouped(failed, "clip_id")
        pairs = tables["pairs"]
        ids = pa.array(sorted(wanted), pa.string())
        near = pairs.filter(pc.or_(pc.is_in(pairs["clip_a"], ids), pc.is_in(pairs["clip_b"], ids))).to_pylist()
        self._pairs: dict[str, list[Row]] = {}
        for pair in near:
            for own in {pair["clip_a"], pair["clip_b"]} & wanted:
                self._pairs.setdefault(own, []).append(pair)
        others = {pair[side] for pair in near for side in ("clip_a", "clip_b")}
        named = _of(tables["clips"].select(["clip_id", "uri", "start_us"]), "clip_id", others).to_pylist()
        self._places = {row["clip_id"]: f"{_name(row['uri'])} at {row['start_us'] / 1e6:.2f} s" for row in named}
        outcomes = _of(tables["outcomes"], "clip_id", wanted).to_pylist() if "outcomes" in tables else []
        self._outcomes = _grouped(outcomes, "clip_id")
        self._samples = {
            name: {row["clip_id"]: row for row in _of(table, "clip_id", wanted).to_pylist()}
            for name, table in samples.items()
        }

    def of(self, clip_id: str) -> str:
        """The story of one of the clips."""
        clip = self._clips[clip_id]
        parts: list[tuple[str, list[str]]] = [
            ("clip", [f"{clip_id}, {clip['branch']}{_listed_facts(clip)}"]),
            ("source", self._source(clip)),
            ("span", [_span(clip)]),
            ("crop", _crop(clip)),
            ("scores", [_score(name, clip) for name in SCORES]),
            ("levels", self._levels(clip_id)),
            ("copies", self._copies(clip_id)),
            ("labels", self._label_lines(clip_id)),
            ("sets", self._set_lines(clip_id)),
        ]
        lines = []
        for heading, body in parts:
            for place, line in enumerate(body or ["-"]):
                lines.append(f"{heading if place == 0 else '':8} {line}".rstrip())
        return "\n".join(lines) + "\n"

    def _source(self, clip: Row) -> list[str]:
        source = self._sources.get(clip["uri"])
        lines = [clip["uri"]]
        if source is None:
            return [*lines, "not among the sources any more"]
        rate = "" if source["fps"] is None else f", {source['fps']:.3f} fps, {source['duration_us'] / 1e6:.2f} s"
        size = f"{source['codec']}, {source['width']}x{source['height']}{rate}, {source['size_bytes']:,} bytes"
        lines.append(f"{source['status']}: {size}" + (f"; {source['reason']}" if source["reason"] else ""))
        return lines + [f"byte-identical: {twin['uri']}" for twin in self._twins.get(clip["uri"], [])]

    def _levels(self, clip_id: str) -> list[str]:
        lines = []
        on_disk = {row["admission"]: row for row in self._decisions.get(clip_id, [])}
        for admission in ADMISSIONS:
            failed = [row for row in self._failures.get(clip_id, []) if row["admission"] == admission]
            decided = on_disk.get(admission)
            if failed:
                line = "; also ".join(_failure(row) for row in failed)
            elif decided is not None and decided["decision"] == "duplicate":
                keeper = decided["duplicate_of"]
                line = f"duplicate of {keeper} ({self._places.get(keeper, 'of an earlier run')})"
            else:
                line = KEEP
            now = failed[0]["control"] if failed else line.split(" ")[0]
            if decided is None:
                line += " (not decided yet)"
            elif decided["decision"] != now:
                line += f" (the decision on disk, by other thresholds or labels: {decided['decision']})"
            lines.append(f"{admission:5} {line}")
        return lines

    def _copies(self, clip_id: str) -> list[str]:
        pairs = sorted(self._pairs.get(clip_id, []), key=lambda pair: (not pair["verified"], -pair["mean_cosine"]))
        lines = []
        for pair in pairs[:_MOST_LISTED]:
            mirrored = pair["clip_b"] == clip_id
            other = pair["clip_a"] if mirrored else pair["clip_b"]
            offset = (-1 if mirrored else 1) * pair["offset_us"] / 1e6
            verdict = "copy" if pair["verified"] else "not confirmed"
            lines.append(
                f"{verdict}: {other} ({self._places.get(other, 'of an earlier run')}), cosine {pair['cosine']:.3f}, mean "
                f"{pair['mean_cosine']:.3f}, {pair['frames_agree']} of {pair['frames_compared']} frames agree, offset {offset:+.2f} s"
            )
        if len(pairs) > _MOST_LISTED:
            lines.append(f"and {len(pairs) - _MOST_LISTED} more candidates")
        return lines

    def _label_lines(self, clip_id: str) -> list[str]:
        label = self._labels.get(clip_id)
        if label is None:
            return []
        lines = [f"by {label['model']}, prompt {label['prompt_version']}"]
        lines += [f"{name}: {label[name]}" for name in _LABEL_TEXTS if label[name]]
        judged = [f"{name} {'yes' if label[name] else 'no'}" for name in _LABEL_FLAGS if label[name] is not None]
        return [*lines, ", ".join(judged) or "yes/no labels: not judged by this captioner"]

    def _set_lines(self, clip_id: str) -> list[str]:
        lines = []
        for name, rows in self._samples.items():
            if clip_id in rows:
                row = rows[clip_id]
                shape = "x".join(map(str, row["latent_shape"]))
                lines.append(f"{name}: shard {row['shard_index']}, sample {row['ordinal']}, latent {shape} (T C H W)")
        failed = self._outcomes.get(clip_id, [])
        return lines + [f"{row['set'] or 'every set'}: failed in {row['phase']}: {row['reason']}" for row in failed]


def explain(
    wanted: str, tables: Mapping[str, pa.Table], samples: Mapping[str, pa.Table], settings: DecideSettings
) -> str:
    """The story of a clip (its id, or the start of it), or of a source (the end of its uri) with a line per clip.

    Raises:
        UsageError: nothing of that name, or several.
    """
    clips = tables["clips"]
    ids = clips.filter(pc.starts_with(clips["clip_id"], wanted))["clip_id"].to_pylist()
    if len(ids) > 1 and wanted not in ids:
        raise UsageError(
            f"{wanted!r} is the start of {len(ids)} clip ids ({', '.join(sorted(ids)[:3])}, ...); give more of it"
        )
    if ids:
        only = wanted if wanted in ids else ids[0]
        return Stories(tables, samples, settings, [only]).of(only)
    sources = tables["sources"]
    found = sources.filter(pc.ends_with(sources["uri"], wanted)).to_pylist()
    if not found:
        raise UsageError(f"{wanted!r} is neither the start of a clip id nor the end of a source's uri in this run")
    return "".join(_source_story(row, tables) for row in found[:_MOST_LISTED])


def _source_story(source: Row, tables: Mapping[str, pa.Table]) -> str:
    first = source["same_content_as"] or source["uri"]
    lines = [
        f"source   {source['uri']}",
        f"         {source['status']}{': ' + source['reason'] if source['reason'] else ''}",
    ]
    if source["same_content_as"]:
        lines.append(f"         byte-identical to {first}, which was analysed in its stead")
    rows = _of(tables["clips"], "uri", {first}).sort_by("start_us").to_pylist()
    kept = _grouped(_of(tables["decisions"], "clip_id", {row["clip_id"] for row in rows}).to_pylist(), "clip_id")
    for row in rows:
        told = ", ".join(f"{one['admission']} {one['decision']}" for one in kept.get(row["clip_id"], []))
        lines.append(f"{'clip':8} {row['clip_id']} {_span(row)}: {told}")
    return "\n".join(lines if rows else [*lines, f"{'clip':8} none"]) + "\n"


def _listed_facts(clip: Row) -> str:
    return "".join(f", {name} {clip[name]}" for name in ("domain", "licence") if clip[name])


def _span(clip: Row) -> str:
    if clip["kind"] == "image":
        return "image, one frame"
    times = f"{clip['start_us'] / 1e6:.3f} to {clip['end_us'] / 1e6:.3f} s"
    return f"shot {clip['shot']}, {times}: {clip['frames']} frames at {clip['clip_fps']:g} fps"


def _crop(clip: Row) -> list[str]:
    box = clip["crop"]
    size = f"{box['right'] - box['left']}x{box['bottom'] - box['top']} at ({box['left']}, {box['top']})"
    lines = [
        f"{size} of {clip['source_width']}x{clip['source_height']}; {', '.join(clip['crop_flags']) or 'nothing cut'}"
    ]
    for kind, overlay in zip(clip["overlay_kinds"], clip["overlays"], strict=True):
        place = f"({overlay['left']}, {overlay['top']}) to ({overlay['right']}, {overlay['bottom']})"
        lines.append(f"{kind} that stays: {place}")
    return lines


def _score(name: str, clip: Row) -> str:
    if clip[name] is None:
        return f"{name:27} not computable: {clip[f'{name}_reason']}"
    return f"{name:27} {clip[name]:<10.4g} {SCORES[name].unit}, by {clip[f'{name}_model']}"


def _failure(row: Mapping[str, Any]) -> str:
    if row["value"] is None or row["limit"] is None:
        return str(row["control"])
    return f"{row['control']} ({row['measure']} {row['value']:.4g}, limit {row['limit']:.4g})"


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def _of(table: pa.Table, column: str, values: Iterable[str]) -> pa.Table:
    return table.filter(pc.is_in(table[column], pa.array(sorted(values), pa.string())))


def _grouped(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups
