"""Whose features a clip is aligned to: the teacher of its set and branch, read from the shard or computed while training.

A run may have several teachers (V-JEPA 2 for videos, DINOv2 for images), each with a width and a projector of its own; a clip has one or none.
Which branch has which is written in the set (`set.json`) and may be narrowed by the configuration (`repa.teacher_by_branch`); only an online
run may name teachers that the set does not store. Checked before anything is loaded, so that a wrong name costs no minute.

Legend: T latent frames, Y/X token rows and columns, C teacher channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError, DataError, UsageError
from schemas.shards import SetInfo
from training.config import RepaConfig
from training.loading.clip_arrays import ClipArrays

__all__ = [
    "ClipFeatures",
    "StoredTeachers",
    "Teachers",
    "check_teachers",
    "expected_widths",
    "online_teacher_names",
    "open_teachers",
    "parse_teacher_paths",
]


class ClipFeatures(NamedTuple):
    """What one clip is aligned to."""

    teacher: str
    features_TYXC: NDArray[np.float16]
    """On the token grid of the clip's bucket."""


class Teachers(ABC):
    """The teachers of a run; `features_of` is called in the loader's thread."""

    widths: Mapping[str, int]
    """Teacher to the channels of its features; there is one projector for each, used in a step or not."""
    notes: tuple[str, ...] = ()
    """What somebody who reads the log should know."""

    @abstractmethod
    def features_of(self, clip: ClipArrays) -> ClipFeatures | None:
        """The features of a clip; None when its branch has no teacher."""


class StoredTeachers(Teachers):
    """Features from the shards."""

    def __init__(self, widths: Mapping[str, int], teacher_by_branch: Mapping[str, str | None] | None = None) -> None:
        self.widths = dict(sorted(widths.items()))
        self._by_branch = teacher_by_branch

    def features_of(self, clip: ClipArrays) -> ClipFeatures | None:
        """As stored; DataError when the array is not as wide as `set.json` says."""
        left_out = self._by_branch is not None and self._by_branch.get(clip.branch) is None
        if clip.teacher_TYXC is None or clip.teacher is None or left_out:
            return None
        if clip.teacher_TYXC.shape[3] != self.widths[clip.teacher]:
            raise DataError(
                f"clip {clip.clip_id}: teacher.npy is {clip.teacher_TYXC.shape[3]} wide, set.json says {self.widths[clip.teacher]} "
                "(teacher_width); pack the set again"
            )
        return ClipFeatures(clip.teacher, clip.teacher_TYXC)


def check_teachers(
    repa: RepaConfig | None,
    infos: Sequence[SetInfo],
    teacher_paths: Mapping[str, Path] | None = None,
    codec_path: Path | None = None,
) -> None:
    """Everything about teachers that can be wrong before weights are loaded.

    Raises:
        ConfigError: a teacher that the sets lack, an unknown one, or none at all.
        DataError: sets that disagree about one teacher.
        UsageError: paths that nobody asks for.
    """
    online = repa is not None and repa.source == "online"
    given = [*(f"--teacher-path {name}" for name in teacher_paths or {}), *(["--codec-path"] if codec_path else [])]
    if given and not online:
        raise UsageError(
            f"{given[0]} was given, but no teacher runs in training; leave it out, or set repa.source=online"
        )
    if repa is None:
        return
    if not online:
        _stored_widths(repa, infos)
        return
    names = online_teacher_names(repa, infos)
    strange = sorted(set(teacher_paths or {}) - names)
    if strange:
        raise UsageError(
            f"--teacher-path {strange[0]} was given; the teachers of this run are {', '.join(sorted(names))}"
        )


def open_teachers(
    repa: RepaConfig | None,
    infos: Sequence[SetInfo],
    *,
    teacher_paths: Mapping[str, Path] | None = None,
    codec_path: Path | None = None,
    device: str = "cpu",
) -> Teachers | None:
    """The teachers of a run, weights loaded where they are needed; None without alignment.

    Raises:
        ConfigError, DataError, UsageError: see `check_teachers`.
        ModelMissingError: an online teacher or its codec is not on this machine.
    """
    check_teachers(repa, infos, teacher_paths, codec_path)
    if repa is None:
        return None
    if repa.source == "stored":
        return StoredTeachers(_stored_widths(repa, infos), repa.teacher_by_branch)
    from training.online_teachers import OnlineTeachers

    return OnlineTeachers.load(
        online_teacher_names(repa, infos),
        infos[0],
        teacher_by_branch=repa.teacher_by_branch,
        teacher_paths=teacher_paths or {},
        codec_path=codec_path,
        device=device,
    )


def expected_widths(repa: RepaConfig | None, infos: Sequence[SetInfo]) -> dict[str, int | None]:
    """The run's teachers, and their widths where the sets say them: an online teacher's is known when it is loaded. Raises as `check_teachers`."""
    if repa is None:
        return {}
    if repa.source == "stored":
        return dict(_stored_widths(repa, infos))
    return dict.fromkeys(sorted(online_teacher_names(repa, infos)))


def parse_teacher_paths(texts: Sequence[str]) -> dict[str, Path]:
    """`["dinov2=/models/dinov2"]` to names and paths; UsageError otherwise."""
    paths = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise UsageError(f"--teacher-path {text!r} is not of the form NAME=PATH, for example dinov2=/models/dinov2")
        paths[name] = Path(path)
    return paths


def _stored_widths(repa: RepaConfig, infos: Sequence[SetInfo]) -> dict[str, int]:
    """Teacher to width, over all sets."""
    widths: dict[str, int] = {}
    revisions: dict[str, str | None] = {}
    for info in infos:
        for branch, name in _wanted(repa, info).items():
            if name is None:
                continue
            if info.teacher_by_branch.get(branch) != name:
                raise ConfigError(
                    f"repa.teacher_by_branch gives {branch} the teacher {name!r}, the set {info.set_name!r} has "
                    f"{info.teacher_by_branch.get(branch)!r} stored for it (set.json: teacher_by_branch); "
                    "use that one, set repa.source=online, or pack the set with the teacher"
                )
            if info.teacher_width is None:
                raise DataError(
                    f"set {info.set_name!r}: teacher_by_branch names {name!r}, but teacher_width is null (set.json); pack the set again"
                )
            revision = info.revisions.get(f"teacher.{name}")
            found = (widths.setdefault(name, info.teacher_width), revisions.setdefault(name, revision))
            if found != (info.teacher_width, revision):
                raise DataError(
                    f"the sets of this run differ in teacher {name!r}: width {found[0]} and revision {found[1]} in one, "
                    f"{info.teacher_width} and {revision} in {info.set_name!r} (set.json); pack them with one teacher, or train them apart"
                )
    if not widths:
        raise ConfigError(
            f"repa is on, but the sets {', '.join(repr(info.set_name) for info in infos)} have no teacher features "
            "(set.json: teacher_by_branch); set repa=null, set repa.source=online, or pack the set with a teacher"
        )
    _check_names(widths)
    return widths


def online_teacher_names(repa: RepaConfig, infos: Sequence[SetInfo]) -> set[str]:
    """The teachers to load."""
    from encoders.teacher import TEACHERS

    names = {name for info in infos for name in _wanted(repa, info).values() if name is not None}
    if not names:
        raise ConfigError(
            "repa.source is online, but neither repa.teacher_by_branch nor set.json says which teacher; "
            "set for example repa.teacher_by_branch={video_real: vjepa2, image_real: dinov2}"
        )
    unknown = sorted(names - set(TEACHERS))
    if unknown:
        raise ConfigError(
            f"repa.source is online, and teacher {unknown[0]!r} is unknown; expected one of {', '.join(TEACHERS)} "
            "(repa.teacher_by_branch, or set.json: teacher_by_branch)"
        )
    return names


def _wanted(repa: RepaConfig, info: SetInfo) -> Mapping[str, str | None]:
    return info.teacher_by_branch if repa.teacher_by_branch is None else repa.teacher_by_branch


def _check_names(names: Mapping[str, int]) -> None:
    """A teacher's name is part of the names of its projector's parameters: `projectors.dinov2.first.weight`."""
    for name in names:
        if not name.isidentifier():
            raise DataError(
                f"teacher {name!r} cannot name a projector; expected letters, digits and _ (set.json: teacher_by_branch)"
            )
