"""Two stages that let NeMo Curator's video stages stand in a list of ours: clips of a source in, columns of a table out.

    ClipsToVideo -> any stages on `VideoTask` -> VideoToTable

Our clips are references; NeMo Curator's carry the bytes of a file each. So the first stage copies the packets of each clip out of its source, without
encoding them again, from the keyframe at or before its start. The last one commits one table per unit, like every stage here; a unit is done once.
Price: the bytes of a unit's clips pass through the driver, so keep units small; and a NeMo stage runs in the Ray worker itself, not in a child
process: what crashes it costs a worker, and after twelve of them the run.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

import av
import pyarrow as pa
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks.video import Clip, Video, VideoTask

from curation.commits import DONE, CommitStore
from curation.config import StageResources
from curation.near import default_near, near_folder
from curation.object_commits import open_commits
from curation.objects import is_url
from curation.stages import STOPPED, UnitTask
from schemas.errors import UsageError
from schemas.tables import CLIPS, empty_table, read_table, table_from_rows, write_table

if TYPE_CHECKING:
    from curation.session import Session

__all__ = ["ClipsToVideo", "VideoToTable", "clip_bytes", "side_table", "video_units"]

_UNIT, _IDS = "reelyard_unit", "reelyard_clip_ids"
_MICROSECOND = 1_000_000


def video_units(session: Session, name: str) -> list[dict[str, Any]]:
    """A unit per analysed video that has clips and no committed table of this name yet; its part is called `name`."""
    clips: dict[str, list[str]] = {}
    for row in session.table("clips").select(["clip_id", "content_hash", "kind"]).to_pylist():
        if row["kind"] == "video":
            clips.setdefault(row["content_hash"], []).append(row["clip_id"])
    units = []
    for content, request in session.inventory.by_content().items():
        key = session.inventory.key_of[request.uri]
        if content not in clips or session.commits.is_committed(name, key):
            continue
        if is_url(request.path):
            raise UsageError(
                f"source {request.uri} lies on an object store, which NeMo Curator's stages do not read here; copy the sources "
                "to a disk that every node sees, or leave these stages out"
            )
        arguments = {"path": request.path, "clip_ids": clips[content]}
        arguments["analysis"] = str(session.commits.folder("analyze", key))
        counts = {"clips": len(clips[content]), "video_seconds": 0.0}
        part = {"unit": key, "arguments": arguments, "timeout_s": 0.0, "counts": counts, "weight": len(clips[content])}
        units.append({"label": request.uri, "parts": {name: part}, "results": {}})
    return units


def side_table(session: Session, name: str, schema: pa.Schema) -> Path:
    """Every committed table of this name in one file, OUT/tables/<name>.parquet, sorted by clip id."""
    paths = [session.commits.folder(name, key) / f"{name}.parquet" for key in session.commits.keys(name)]
    tables = [read_table(path, schema) for path in paths] or [empty_table(schema)]
    target = session.output / "tables" / f"{name}.parquet"
    write_table(target, pa.concat_tables(tables).sort_by("clip_id"), schema)
    session.place.publish(f"tables/{name}.parquet")
    return target


class ClipsToVideo(ProcessingStage[UnitTask, VideoTask]):
    """A unit whose part `name` has `arguments`: path, analysis (folder of the committed analysis), clip_ids."""

    def __init__(self, name: str, resources: StageResources) -> None:
        self.name = name
        self.resources = Resources(cpus=resources.cpus, gpus=resources.gpus)

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["clips"]

    def process(self, task: UnitTask) -> VideoTask:
        arguments = task.data["parts"][self.name]["arguments"]
        wanted = set(arguments["clip_ids"])
        table = read_table(Path(arguments["analysis"]) / "clips.parquet", CLIPS)
        clips = {row["clip_id"]: _clip(row, arguments["path"]) for row in table.to_pylist() if row["clip_id"] in wanted}
        video = Video(input_video=Path(arguments["path"]), clips=list(clips.values()), num_total_clips=len(clips))
        made = VideoTask(dataset_name=task.dataset_name, data=video)
        made._metadata = {_UNIT: task.data, _IDS: {clip.uuid: clip_id for clip_id, clip in clips.items()}}
        return made


def _clip(row: Mapping[str, Any], path: str) -> Clip:
    span = (row["start_us"] / _MICROSECOND, row["end_us"] / _MICROSECOND)
    clip = Clip(uuid=uuid5(NAMESPACE_OID, row["clip_id"]), source_video=path, span=span)
    try:
        clip.buffer = clip_bytes(path, row["start_us"], row["end_us"])
    except (av.FFmpegError, ValueError, StopIteration) as error:
        clip.errors["buffer"] = f"{type(error).__name__}: {error}"
    return clip


def clip_bytes(path: str, start_us: int, end_us: int) -> bytes:
    """The packets of a span of the first video stream as an MP4, from the keyframe at or before `start_us`; nothing is encoded.

    Raises:
        av.FFmpegError: the file cannot be read, or MP4 cannot hold its codec.
    """
    target = io.BytesIO()
    with av.open(path) as source, av.open(target, "w", format="mp4") as copy:
        stream = source.streams.video[0]
        assert stream.time_base is not None
        zero = stream.start_time or 0
        into = copy.add_stream_from_template(stream)
        source.seek(zero + round(start_us / _MICROSECOND / stream.time_base), stream=stream)
        for packet in source.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            if float((packet.dts - zero) * stream.time_base) * _MICROSECOND >= end_us:
                break
            packet.stream = into
            copy.mux(packet)
    return target.getvalue()


class VideoToTable(ProcessingStage[VideoTask, UnitTask]):
    """Commits one row per clip, clip_id and what `columns` says of the clip, as `<name>.parquet`; the unit comes back with its result."""

    def __init__(
        self,
        name: str,
        resources: StageResources,
        store: CommitStore,
        schema: pa.Schema,
        columns: Callable[[Clip], dict[str, Any]],
    ) -> None:
        self.name = f"{name}_table"
        self.resources = Resources(cpus=resources.cpus, gpus=resources.gpus)
        self._part, self._schema, self._columns = name, schema, columns
        self._root = store.address

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["clips"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], []

    def process(self, task: VideoTask) -> UnitTask:
        unit, ids = task._metadata[_UNIT], task._metadata[_IDS]
        store, part = open_commits(self._root, near_folder(default_near())), unit["parts"][self._part]
        clips = [*task.data.clips, *task.data.filtered_clips]
        result: dict[str, Any] = {"status": DONE, "reason": None, "attempts": 1, "counts": part.get("counts")}
        result["seconds"] = sum(perf.process_time for perf in task._stage_perf)
        try:
            rows = [{"clip_id": ids[clip.uuid], **self._columns(clip)} for clip in clips]
            table = table_from_rows(self._schema, sorted(rows, key=lambda row: str(row["clip_id"])))
            record = {"status": DONE, "reason": None, "answer": None}
            with store.unit(self._part, part["unit"], record) as folder:
                write_table(folder / f"{self._part}.parquet", table, self._schema)
        except Exception as error:  # an exception here would end the run: one unit with its reason instead
            logging.getLogger(__name__).exception("unit %s", unit["label"])
            result |= {"status": STOPPED, "reason": f"{type(error).__name__}: {error}"}
        unit["results"][self._part] = result
        return UnitTask(dataset_name=task.dataset_name, data=unit)
