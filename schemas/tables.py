"""The Parquet tables that pass between the phases and parts: exact columns, versions, checked on reading and writing.

A table's name and version are in its Arrow metadata. A reader refuses what it does not know and says what to run; a writer refuses columns
that are missing, extra or of another type. Every score has three columns: value (null when not computable), the model that gave it, and the
reason when it is null. Price: wide tables; polars reads only the columns it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import SchemaError
from schemas.files import atomic_path

__all__ = [
    "ADMISSIONS",
    "BRANCHES",
    "CLIPS",
    "DECISIONS",
    "DESCRIPTORS",
    "DESCRIPTOR_WIDTH",
    "LABELS",
    "MEMBER",
    "OUTCOMES",
    "PAIRS",
    "SAMPLES",
    "SCORES",
    "SOURCES",
    "SOURCE_STATUSES",
    "TABLES",
    "THUMBNAILS",
    "ScoreFacts",
    "check_file",
    "checked_table",
    "empty_table",
    "named_schema",
    "read_table",
    "table_from_rows",
    "write_table",
]

BRANCHES = ("image_real", "image_synthetic", "video_real", "video_synthetic")
SOURCE_STATUSES = ("ok", "truncated", "failed", "quarantined")
ADMISSIONS = ("144p", "360p", "480p", "720p", "sft")
"""The levels that a clip may be trained in, loosest first. Sets below 144p (64p) use the first level."""


@dataclass(frozen=True)
class ScoreFacts:
    """What a score measures, in which unit, and between which values it can lie (`highest` null: no upper end)."""

    meaning: str
    unit: str
    lowest: float | None
    highest: float | None


SCORES = {
    "nsfw": ScoreFacts(
        "second highest probability over the sampled frames (the highest, of one or two)", "probability", 0.0, 1.0
    ),
    "motion": ScoreFacts(
        "mean absolute optical displacement between sampled neighbours",
        "pixels per frame at a long side of 256",
        0.0,
        None,
    ),
    "motion_global": ScoreFacts(
        "displacement of the picture as a whole (the camera), mean over the neighbours",
        "pixels per frame at a long side of 256",
        0.0,
        None,
    ),
    "motion_local": ScoreFacts(
        "mean displacement left when that of the picture as a whole is taken out",
        "pixels per frame at a long side of 256",
        0.0,
        None,
    ),
    "shake": ScoreFacts(
        "mean change of the displacement of the picture as a whole from one pair of neighbours to the next",
        "pixels per frame at a long side of 256",
        0.0,
        None,
    ),
    "luma": ScoreFacts("mean BT.709 luma over the sampled frames", "levels", 0.0, 255.0),
    "sharpness": ScoreFacts(
        "variance of the Laplacian of luma at a long side of 256, median over the sampled frames",
        "levels squared",
        0.0,
        None,
    ),
    "aesthetic": ScoreFacts("mean aesthetic score over the sampled frames", "the model's own", None, None),
    "text_area_ratio": ScoreFacts(
        "area of text boxes over the cropped picture, mean over the sampled frames", "share", 0.0, 1.0
    ),
    "overlay_area_ratio": ScoreFacts(
        "area of persistent text and marks that the crop could not avoid, over the cropped picture", "share", 0.0, 1.0
    ),
    "border_area_ratio": ScoreFacts("area of black borders (letterbox) over the source picture", "share", 0.0, 1.0),
    "blockiness": ScoreFacts(
        "luma steps across the edges of 8-pixel blocks over the steps elsewhere, at the size of the source; 1 is no blocks",
        "ratio",
        0.0,
        None,
    ),
    "effective_resolution_ratio": ScoreFacts(
        "side of the smallest picture that holds the same detail, over the side of the source; 0.5 is enlarged twofold",
        "share",
        0.0,
        1.0,
    ),
    "effective_fps": ScoreFacts(
        "frames of the source within the clip that bring a new picture", "frames per second", 0.0, None
    ),
}
"""Score name to what it is. Columns per score: `<name>` float32, `<name>_model` string, `<name>_reason` string (null when computed)."""

DESCRIPTOR_WIDTH = 512
_BOX = pa.struct([("top", pa.int32()), ("left", pa.int32()), ("bottom", pa.int32()), ("right", pa.int32())])
MEMBER = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("crc32", pa.uint32())])
"""One tar member of a sample: name without the clip id (`latent.npy`), byte offset of its data in the tar, length, crc32 of the data."""


def named_schema(name: str, version: int, fields: Sequence[tuple[str, pa.DataType] | pa.Field]) -> pa.Schema:
    """A schema whose metadata carries the table's name and version. A field given as a pair is not nullable."""
    full = [field if isinstance(field, pa.Field) else pa.field(field[0], field[1], nullable=False) for field in fields]
    return pa.schema(full, metadata={"reelyard.table": name, "reelyard.version": str(version)})


def _nullable(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=True)


def _score_fields() -> list[pa.Field]:
    fields = []
    for score in SCORES:
        fields.append(_nullable(score, pa.float32()))
        fields.append(_nullable(f"{score}_model", pa.string()))
        fields.append(_nullable(f"{score}_reason", pa.string()))
    return fields


SOURCES = named_schema(
    "sources",
    1,
    [
        ("uri", pa.string()),  # percent-encoded; one row per uri
        _nullable("content_hash", pa.string()),  # sha256 hex; null when the file could not be read
        ("size_bytes", pa.int64()),
        ("kind", pa.string()),  # video | image
        ("branch", pa.string()),
        ("domain", pa.string()),  # from the source list, "" if not given
        ("licence", pa.string()),
        _nullable("codec", pa.string()),
        _nullable("height", pa.int32()),  # as displayed, after rotation
        _nullable("width", pa.int32()),
        _nullable("rotation_degrees", pa.int32()),
        _nullable("fps", pa.float64()),  # mean, from timestamps; null for images
        _nullable("duration_us", pa.int64()),  # decoded span
        _nullable("frames_decoded", pa.int64()),
        ("status", pa.string()),  # one of SOURCE_STATUSES
        _nullable("reason", pa.string()),  # null only when status is ok
        _nullable("same_content_as", pa.string()),  # uri of the byte-identical source that was analysed in its stead
    ],
)

CLIPS = named_schema(
    "clips",
    2,
    [
        ("clip_id", pa.string()),
        ("content_hash", pa.string()),
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("branch", pa.string()),
        ("domain", pa.string()),
        ("licence", pa.string()),
        ("shot", pa.int32()),  # index of the shot within its source
        ("start_us", pa.int64()),  # timeline of the source, first frame at 0
        ("end_us", pa.int64()),
        ("frames", pa.int32()),  # at `clip_fps`; one of FRAME_COUNTS
        ("clip_fps", pa.float64()),
        ("source_fps", pa.float64()),  # 0 for images
        ("source_height", pa.int32()),
        ("source_width", pa.int32()),
        ("source_bytes", pa.int64()),
        ("crop", _BOX),  # in source pixels as displayed; bottom and right excluded
        ("crop_flags", pa.list_(pa.string())),  # borders, overlay, no_good_crop
        ("overlays", pa.list_(_BOX)),  # persistent boxes, source pixels
        ("overlay_kinds", pa.list_(pa.string())),  # text | mark, one per box
        ("model_frames", pa.int32()),  # frames that the scores looked at
        *_score_fields(),
    ],
)

DESCRIPTORS = named_schema(
    "descriptors",
    1,
    [
        ("clip_id", pa.string()),
        ("time_us", pa.int64()),  # of the frame, from the clip's start
        ("descriptor", pa.list_(pa.field("item", pa.float16(), nullable=False), DESCRIPTOR_WIDTH)),  # L2-normalised
        ("model", pa.string()),
    ],
)

THUMBNAILS = named_schema(
    "thumbnails",
    1,
    [
        ("clip_id", pa.string()),
        ("num_frames", pa.int32()),  # of equal width, side by side in time order
        ("jpeg", pa.binary()),  # cropped picture, long side of one frame 256 pixels
    ],
)

PAIRS = named_schema(
    "pairs",
    2,
    [
        ("clip_a", pa.string()),  # clip_a < clip_b
        ("clip_b", pa.string()),
        ("cosine", pa.float32()),  # highest over frame pairs
        ("mean_cosine", pa.float32()),  # over the compared frames at the best time offset
        (
            "offset_us",
            pa.int64(),
        ),  # a frame of clip_a at t, from that clip's start, lines up with one of clip_b at t + offset; 0 for images
        ("frames_agree", pa.int32()),
        ("frames_compared", pa.int32()),
        ("verified", pa.bool_()),
    ],
)

LABELS = named_schema(
    "labels",
    1,
    [
        ("clip_id", pa.string()),
        ("caption_long", pa.string()),
        ("caption_short", pa.string()),
        ("caption_first", pa.string()),
        ("subject", pa.string()),
        ("style", pa.string()),
        ("action", pa.string()),
        ("camera_move", pa.string()),
        _nullable("quality", pa.string()),  # low | medium | high; null when the captioner does not judge it
        _nullable("watermark", pa.bool_()),
        _nullable("nsfw", pa.bool_()),
        _nullable("padded", pa.bool_()),
        _nullable("multi_scene", pa.bool_()),
        _nullable("timelapse", pa.bool_()),
        ("tags", pa.list_(pa.string())),
        ("model", pa.string()),
        ("prompt_version", pa.string()),
    ],
)

DECISIONS = named_schema(
    "decisions",
    1,
    [
        ("clip_id", pa.string()),
        ("admission", pa.string()),
        ("decision", pa.string()),  # keep, or the one reason
        _nullable("measure", pa.string()),  # the column that decided
        _nullable("value", pa.float64()),
        _nullable("limit", pa.float64()),
        _nullable("duplicate_of", pa.string()),
    ],
)

OUTCOMES = named_schema(
    "outcomes", 1, [("clip_id", pa.string()), ("phase", pa.string()), ("set", pa.string()), ("reason", pa.string())]
)

SAMPLES = named_schema(
    "samples",
    1,
    [
        ("clip_id", pa.string()),
        ("set", pa.string()),  # the class
        ("shard_index", pa.int32()),  # into set.json's `shards`
        ("ordinal", pa.int32()),  # position of the sample within its shard
        ("offset", pa.int64()),  # first byte of the sample's first tar header
        ("length", pa.int64()),  # up to the next sample's first header (or the end-of-archive blocks)
        ("members", pa.list_(MEMBER)),
        ("latent_shape", pa.list_(pa.field("item", pa.int32(), nullable=False), 4)),  # T C H W
        ("frames", pa.int32()),  # longest bucket: pixel frames
        ("height", pa.int32()),  # pixels
        ("width", pa.int32()),
        ("text_tokens_long", pa.int32()),
        ("text_tokens_short", pa.int32()),
        ("text_tokens_first", pa.int32()),
        ("branch", pa.string()),
        ("domain", pa.string()),
        ("subject", pa.string()),
        ("style", pa.string()),
        ("source", pa.string()),  # content hash of the source
        ("start_us", pa.int64()),
        ("admissions", pa.list_(pa.string())),
        ("has_teacher", pa.bool_()),
    ],
)

TABLES = {
    "sources": SOURCES,
    "clips": CLIPS,
    "descriptors": DESCRIPTORS,
    "thumbnails": THUMBNAILS,
    "pairs": PAIRS,
    "labels": LABELS,
    "decisions": DECISIONS,
    "outcomes": OUTCOMES,
    "samples": SAMPLES,
}


def empty_table(schema: pa.Schema) -> pa.Table:
    """A table with the schema's columns and no rows."""
    return schema.empty_table()


def table_from_rows(schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows (one mapping each) to a table of exactly `schema`; a missing or extra key, or a null where none may be, is a SchemaError."""
    rows = list(rows)
    names = set(schema.names)
    for row in rows:
        if set(row) != names:
            missing, extra = sorted(names - set(row)), sorted(set(row) - names)
            raise SchemaError(f"a row of table {_name(schema)!r} lacks {missing} and has unknown {extra}")
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    return checked_table(table, schema, "rows in memory")


def write_table(path: Path, table: pa.Table, schema: pa.Schema, *, rising: Sequence[str] = ()) -> None:
    """Write Parquet atomically, after checking that `table` has exactly the schema's columns; zstd, deterministic for given values.

    `rising` names integer columns (`clips.list.element.shard`) whose neighbours are close to each other: stored as differences, which takes
    fewer bytes.
    """
    checked = checked_table(table, schema, str(path))
    options: dict[str, Any] = {}
    if rising:
        options = {"use_dictionary": False, "column_encoding": dict.fromkeys(rising, "DELTA_BINARY_PACKED")}
    with atomic_path(path) as temporary:
        pq.write_table(
            checked,
            temporary,
            compression="zstd",
            row_group_size=1 << 20,
            version="2.6",
            write_statistics=not rising,
            **options,
        )


def check_file(path: Path, schema: pa.Schema) -> None:
    """SchemaError unless the Parquet file at `path` holds this table in this version."""
    try:
        found = pq.read_schema(path)
    except FileNotFoundError as error:
        raise SchemaError(
            f"table {path} does not exist; expected {_name(schema)!r}, run the phase that writes it"
        ) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise SchemaError(f"table {path} is not readable Parquet ({error}); write it again") from error
    metadata = found.metadata or {}
    seen = (metadata.get(b"reelyard.table", b"?").decode(), metadata.get(b"reelyard.version", b"?").decode())
    expected = (_name(schema), _version(schema))
    if seen != expected:
        raise SchemaError(
            f"{path} holds table {seen[0]!r} version {seen[1]}, expected {expected[0]!r} version {expected[1]}; "
            "write it again with this version of Reelyard"
        )


def read_table(path: Path, schema: pa.Schema, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read Parquet, refusing other tables, other versions and other columns.

    Raises:
        SchemaError: with the path, what was found, what was expected, and what to run.
    """
    check_file(path, schema)
    if columns is None:
        return checked_table(pq.read_table(path), schema, str(path))
    return pq.read_table(path, columns=list(columns))


def _name(schema: pa.Schema) -> str:
    return str(schema.metadata[b"reelyard.table"].decode())


def _version(schema: pa.Schema) -> str:
    return str(schema.metadata[b"reelyard.version"].decode())


def checked_table(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """`table` in the schema's column order, with its metadata; SchemaError on any other column, type or forbidden null."""
    names = set(schema.names)
    if set(table.column_names) != names:
        missing, extra = sorted(names - set(table.column_names)), sorted(set(table.column_names) - names)
        raise SchemaError(f"{where}: table {_name(schema)!r} lacks columns {missing} and has unknown columns {extra}")
    ordered = table.select(schema.names)
    for field in schema:
        column = ordered.column(field.name)
        if not field.nullable and column.null_count:
            raise SchemaError(
                f"{where}: column {field.name!r} of table {_name(schema)!r} holds {column.null_count} nulls; none are allowed"
            )
    try:
        return ordered.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
        raise SchemaError(
            f"{where}: table {_name(schema)!r} has columns of other types ({error}); expected {schema.types}"
        ) from error
