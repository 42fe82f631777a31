"""What a worker's child process can do: one entry per stage, each a thin call of the function that does the work.

Arguments are JSON and name files; the child reads rows from the units that earlier phases committed, so nothing large crosses a pipe. The folder
that a job writes into is the unit's temporary one; the parent commits it. Heavy modules are imported by the job that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.child import Job
from curation.requests import SourceRequest
from schemas.config import build_config
from schemas.errors import ConfigError
from schemas.files import write_json
from schemas.shards import shard_name
from schemas.tables import CLIPS, LABELS, SAMPLES, SOURCES, THUMBNAILS, read_table, table_from_rows, write_table

__all__ = ["JOBS"]

Setup = dict[str, Any]
"""`settings`: the phase's settings as JSON; `cache_dir`: model cache folder or None."""


def _cache_dir(setup: Setup) -> Path | None:
    return None if setup["cache_dir"] is None else Path(setup["cache_dir"])


def _rows(folder: Path, name: str, schema: pa.Schema, clip_ids: list[str]) -> pa.Table:
    """The rows of a committed unit's table that belong to `clip_ids`, sorted by clip id."""
    table = read_table(folder / f"{name}.parquet", schema)
    return table.filter(pc.is_in(table["clip_id"], pa.array(clip_ids, pa.string()))).sort_by("clip_id")


def _analyze_settings(setup: Setup) -> Any:
    from curation.analysis.settings import AnalyzeSettings

    return build_config(AnalyzeSettings, setup["settings"], source="analyze")


def _load_analyze(setup: Setup) -> Any:
    from curation.analysis.worker import load_models

    return load_models(_analyze_settings(setup), _cache_dir(setup))


def _analyze(setup: Setup, models: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """A whole source; with `plan`, only how many pieces it has; with `index` and `count`, one piece."""
    from curation.analysis.worker import analyze_piece, analyze_source, count_pieces

    request, folder = SourceRequest.from_json(arguments["request"]), Path(arguments["folder"])
    settings = _analyze_settings(setup)
    if arguments.get("plan"):
        return {"pieces": count_pieces(request, settings)}
    if "index" in arguments:
        analyze_piece(request, settings, models, folder, index=arguments["index"], count=arguments["count"])
    else:
        analyze_source(request, settings, models, folder)
    before = arguments.get("index", 0) * 60e6 * (settings.piece_minutes or 0)
    microseconds = [
        (value or 0) - before for value in read_table(folder / "sources.parquet", SOURCES)["duration_us"].to_pylist()
    ]
    clips = read_table(folder / "clips.parquet", CLIPS).num_rows
    return {"counts": {"clips": clips, "video_seconds": max(0.0, sum(microseconds) / 1e6)}}


def _load_match(setup: Setup) -> None:
    import faiss  # noqa: F401 - imported here, so that its start does not count against the first unit


def _match(setup: Setup, models: Any, arguments: dict[str, Any]) -> None:
    from curation.match_blocks import search_blocks
    from curation.match_settings import MatchSettings

    settings = build_config(MatchSettings, setup["settings"], source="match")
    search_blocks([Path(folder) for folder in arguments["blocks"]], settings, Path(arguments["folder"]))


def _caption_settings(setup: Setup) -> Any:
    from curation.caption import CaptionSettings

    return build_config(CaptionSettings, setup["settings"], source="caption")


def _load_caption(setup: Setup) -> Any:
    """The tagger, or the key of the server."""
    from curation.caption import load_models
    from curation.captioning.client import api_key

    settings = _caption_settings(setup)
    return api_key(settings.server) if settings.captioner == "server" else load_models(settings, _cache_dir(setup))


def _caption(setup: Setup, models: Any, arguments: dict[str, Any]) -> None:
    """Captions of the clips of one or more sources, a folder for each."""
    from curation.caption import caption_clips
    from curation.captioning.worker import CaptionSource, caption_sources, write_captions_of

    settings, folder = _caption_settings(setup), Path(arguments["folder"])
    sources = []
    for member in arguments["members"]:
        clips = _rows(Path(member["analysis"]), "clips", CLIPS, member["clip_ids"]).to_pylist()
        sources.append(CaptionSource(member["unit"], member["path"], clips))
    if settings.captioner == "server":
        caption_sources(sources, settings.server, models, folder)
        return
    for member, source in zip(arguments["members"], sources, strict=True):
        strips = _rows(Path(member["analysis"]), "thumbnails", THUMBNAILS, member["clip_ids"]).to_pylist()
        thumbnails = {row["clip_id"]: (row["num_frames"], row["jpeg"]) for row in strips}
        source.labels += caption_clips(source.rows, thumbnails, settings, models).to_pylist()
        write_captions_of(source, folder)


def _encode_settings(setup: Setup) -> Any:
    from curation.encoding.settings import EncodeSettings

    return build_config(EncodeSettings, setup["settings"], source="encode")


def _load_latents(setup: Setup) -> Any:
    from curation.encoding.worker import load_models

    return load_models(_encode_settings(setup), _cache_dir(setup))


def _latents(setup: Setup, models: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    from curation.encoding.worker import encode_clips

    request, sets = SourceRequest.from_json(arguments["request"]), arguments["sets_by_clip"]
    clips = _rows(Path(arguments["analysis"]), "clips", CLIPS, list(sets)).to_pylist()
    folder = Path(arguments["folder"])
    return encode_clips(request, clips, _encode_settings(setup), models, folder, sets_by_clip=sets)


def _load_text(setup: Setup) -> Any:
    from curation.encoding.text import load_text_models

    return load_text_models(_encode_settings(setup), _cache_dir(setup))


def _text(setup: Setup, models: Any, arguments: dict[str, Any]) -> None:
    """States of the captions of a source; with `facts`, what a set must say of its encoders, and the states of the empty prompt."""
    from curation.encoding.text import encode_captions

    settings, folder = _encode_settings(setup), Path(arguments["folder"])
    if arguments.get("facts"):
        _write_facts(setup, models, folder)
        return
    labels = _rows(Path(arguments["labels"]), "labels", LABELS, arguments["clip_ids"]).to_pylist()
    encode_captions(labels, settings, models, folder)


def _write_facts(setup: Setup, models: Any, folder: Path) -> None:
    import numpy as np

    from curation.encoding.text import null_text

    settings, encoders = _encode_settings(setup), _load_latents(setup)
    widths = {teacher.channels for teacher in encoders.teachers.values()}
    if len(widths) > 1:
        raise ConfigError(
            f"encode.teacher_by_branch: teachers of widths {sorted(widths)}; a set has one teacher width, choose one teacher"
        )
    image = encoders.image_encoder
    facts = {
        "codec": encoders.codec.name,
        "codec_fingerprint": encoders.codec.fingerprint,
        "latent_channels": encoders.codec.channels,
        "text_encoder": models.encoder.name,
        "text_encoder_fingerprint": models.encoder.fingerprint,
        "text_width": models.encoder.width,
        "teacher_width": widths.pop() if widths else None,
        "image_encoder": None if image is None else image.name,
        "image_width": None if image is None else image.width,
        "revisions": {
            f"latents.{encoders.codec.name}": encoders.codec.revision,
            f"text.{models.encoder.name}": models.encoder.revision,
            **{f"teacher.{name}": teacher.revision for name, teacher in encoders.teachers.items()},
            **({f"image.{image.name}": image.revision} if image is not None else {}),
        },
    }
    write_json(folder / "facts.json", facts)
    np.save(folder / "null_text.npy", null_text(settings, models), allow_pickle=False)


def _load_pack(setup: Setup) -> None:
    import curation.pack  # noqa: F401 - imported here, so that its start does not count against the first tar


def _pack(setup: Setup, models: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    from curation.pack import PackEntry, assemble_shard, shard_info

    folder, index = Path(arguments["folder"]), arguments["shard_index"]
    entries = [PackEntry.from_json(entry) for entry in arguments["entries"]]
    tar = folder / shard_name(index)
    rows = assemble_shard(entries, set_name=arguments["set"], shard_index=index, tar_path=tar)
    write_table(folder / "samples.parquet", table_from_rows(SAMPLES, rows), SAMPLES)
    return dict(shard_info(tar, len(rows)).model_dump(mode="json"))


JOBS = {
    "analyze": Job(_load_analyze, _analyze),
    "match": Job(_load_match, _match),
    "caption": Job(_load_caption, _caption),
    "latents": Job(_load_latents, _latents),
    "text": Job(_load_text, _text),
    "pack": Job(_load_pack, _pack),
}
