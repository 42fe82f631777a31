"""Teachers that run in training: a clip's clean latent is decoded, and its pictures are shown to a frozen network.

For sets without stored features, and for trying a teacher before packing with it. The decoded pictures stand in for the originals, so features are
those of what the codec kept. A clip's features depend on its latent alone: equal in every step, on every rank and after a resume.

Price, for every clip in every step: a pass of the codec's decoder and of the teacher, both usually larger than the network's own embedders,
and on each rank the memory of both; the work is done in the loader's thread, so a CPU rank trains as slowly as its teacher. A run of more than
an epoch or two is cheaper with stored features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import ConfigError
from schemas.shards import SetInfo
from training.loading.clip_arrays import ClipArrays
from training.teachers import ClipFeatures, Teachers

if TYPE_CHECKING:
    from encoders.latents import LatentCodec
    from encoders.registry import Registry
    from encoders.teacher import Teacher

__all__ = ["OnlineTeachers"]


class OnlineTeachers(Teachers):
    """A codec and one network per teacher; `teacher_by_branch` None means that each clip's set says which is its own."""

    def __init__(
        self,
        codec: LatentCodec,
        networks: Mapping[str, Teacher],
        teacher_by_branch: Mapping[str, str | None] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._codec = codec
        self._networks = networks
        self._by_branch = teacher_by_branch
        self.widths = {name: networks[name].channels for name in sorted(networks)}
        self.notes = notes

    @classmethod
    def load(
        cls,
        names: Iterable[str],
        info: SetInfo,
        *,
        teacher_by_branch: Mapping[str, str | None] | None,
        teacher_paths: Mapping[str, Path],
        codec_path: Path | None,
        device: str = "cpu",
        registry: Registry | None = None,
    ) -> OnlineTeachers:
        """From paths, else from the registry; `info` names the codec.

        Raises:
            ConfigError: a path for something that has no weights of that kind.
            ModelMissingError: weights that are not on this machine.
        """
        from encoders.latents import get_codec
        from encoders.teacher import get_teacher

        if codec_path is not None and info.codec == "dct":
            raise ConfigError(
                f"--codec-path {codec_path} was given, but the codec {info.codec!r} has no weights; leave it out"
            )
        options = {} if info.codec == "dct" else {"path": codec_path, "device": device}
        codec = get_codec(info.codec, registry=registry, **options)
        networks = {}
        for name in sorted(names):
            if name == "efficientnet_lite0" and name in teacher_paths:
                raise ConfigError(
                    f"--teacher-path {name} was given, but its weights come from the registry; "
                    f"leave it out and run: reelyard-curate models pull teacher.{name}"
                )
            path = {"path": teacher_paths[name]} if name in teacher_paths else {}
            networks[name] = get_teacher(name, device=device, registry=registry, **path)
        return cls(codec, networks, teacher_by_branch, _notes(codec, info))

    def features_of(self, clip: ClipArrays) -> ClipFeatures | None:
        """Decode the clip at its bucket's length and ask the teacher of its branch."""
        name = clip.teacher if self._by_branch is None else self._by_branch.get(clip.branch)
        if name is None:
            return None
        frames_THWC = self._codec.decode(clip.latent_TCHW)
        return ClipFeatures(name, self._networks[name].features(frames_THWC))


def _notes(codec: LatentCodec, info: SetInfo) -> tuple[str, ...]:
    if codec.fingerprint == info.codec_fingerprint:
        return ()
    return (
        f"the codec that decodes for the teachers is not the one that made the set {info.set_name!r} "
        f"(fingerprint {codec.fingerprint}, set.json says {info.codec_fingerprint})",
    )
