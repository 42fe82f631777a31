"""The plan's list of shards against set.json, and set.json against the tars on this machine: sizes always, times where set.json has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planner.proof.report import VerifyReport
from schemas.shards import SetInfo, shard_address

__all__ = ["check_shards"]


def check_shards(folder: Path, info: SetInfo, names: Sequence[str], sizes: Sequence[int], report: VerifyReport) -> None:
    """`names` and `sizes` are the plan's."""
    listed = [(shard.name, shard.size_bytes) for shard in info.shards]
    for index, pair in enumerate(zip(names, sizes, strict=False)):
        if index >= len(listed) or listed[index] != pair:
            report.add(
                "shards_listed",
                f"the plan's shard {pair[0]} of {pair[1]} bytes is not number {index} in {folder / 'set.json'}",
            )
    if len(listed) != len(names) or len(names) != len(sizes):
        report.add(
            "shards_listed",
            f"{folder / 'set.json'} lists {len(listed)} shards, the plan {len(names)} names and {len(sizes)} sizes",
        )
    _check_files(folder, info, report)


def _check_files(folder: Path, info: SetInfo, report: VerifyReport) -> None:
    if info.location is not None and "://" in info.location:
        report.skip(
            "shard_files",
            f"the tars of {folder} are at {info.location}, which is not asked; `reelyard-plan index` finds changed ones",
        )
        return
    paths = [Path(shard_address(folder, info, shard.name)) for shard in info.shards]
    if not any(path.is_file() for path in paths):
        report.skip("shard_files", f"no tar of {folder} is on this machine")
        return
    for path, shard in zip(paths, info.shards, strict=True):
        if not path.is_file():
            report.add("shard_files", f"{path} has no file, set.json says {shard.size_bytes} bytes")
            continue
        found = path.stat()
        if found.st_size != shard.size_bytes:
            report.add("shard_files", f"{path} has {found.st_size} bytes, set.json says {shard.size_bytes} bytes")
        elif shard.modified_ns is not None and found.st_mtime_ns != shard.modified_ns:
            report.add(
                "shard_files",
                f"{path} was changed at {found.st_mtime_ns} ns, set.json has the tar of {shard.modified_ns} ns; index it again and build anew",
            )
