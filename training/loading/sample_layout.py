"""Where the parts of a sample go when it is read into place: its latent into the micro-batch, the rest into memory of its own, the unneeded nowhere.

    sample   | tar header, npy header | latent | texts ... | unneeded features | json, padding |
    rest     | tar header, npy header |        | texts ... |                   | json, padding |

`rest` is the sample without its latent and without the features that the run does not use. Positions are worked out for all samples at once. A
sample whose members stand otherwise than `schemas.shards` says is not regular: it is read whole, and judged when it is used.

Legend: N samples, M member kinds in the order of `schemas.shards.MEMBER_ORDER`.
"""

from __future__ import annotations

import numpy as np

from schemas.shards import CAPTION_KINDS, MEMBER_ORDER
from training.loading.sample_sets import SampleSets

__all__ = ["MEMBER_AXES", "SampleLayout"]

_TAR_BLOCK = 512
_TAR_NAME_BYTES = 100
_LONGEST_SUFFIX = max(len(f".{name}\0") for name in MEMBER_ORDER)
_LATENT, _TEACHER, _IMAGE, _JSON = (
    MEMBER_ORDER.index(name) for name in ("latent.npy", "teacher.npy", "image.npy", "json")
)
_TEXTS = tuple(MEMBER_ORDER.index(f"text_{kind}.npy") for kind in CAPTION_KINDS)
MEMBER_AXES = tuple({"latent.npy": 4, "teacher.npy": 4, "json": 0}.get(name, 2) for name in MEMBER_ORDER)
"""Of each member's array; none for the json."""
_LATENT_BYTES = 2
_LEAST_NPY_HEADER, _MOST_NPY_HEADER = 64, 1 << 16


class SampleLayout:
    """Positions within samples, for a run that does or does not use teacher features and image tokens."""

    def __init__(self, sets: SampleSets, *, with_teacher: bool, with_image: bool) -> None:
        start_NM, length_NM = sets.member_start_NM, sets.member_length_NM
        there_NM = start_NM >= 0
        self.latent_bytes_N: np.ndarray = sets.latent_shape_N4.astype(np.int64).prod(axis=1) * _LATENT_BYTES
        self.latent_begin_N: np.ndarray = start_NM[:, _LATENT] + length_NM[:, _LATENT] - self.latent_bytes_N
        """First byte of the latent's numbers, behind its npy header."""
        latent_end_N = self.latent_begin_N + self.latent_bytes_N
        kept_M = np.ones(len(MEMBER_ORDER), bool)
        kept_M[_TEACHER], kept_M[_IMAGE] = with_teacher, with_image
        self.kept_NM: np.ndarray = there_NM & kept_M
        """Members that the run uses."""
        self.keeps_more_N: np.ndarray = self.kept_NM[:, _TEACHER] | self.kept_NM[:, _IMAGE]
        """Whether more than latent and texts is used."""
        self.name_NB, self.name_length_N = _names_as_bytes(sets.clip_id_N)
        """Clip ids in UTF-8, filled up with zeros, and how many bytes each has."""
        dropped = [kind for kind in (_TEACHER, _IMAGE) if not kept_M[kind]]
        far = np.iinfo(np.int64).max
        begins = [np.where(there_NM[:, kind], start_NM[:, kind], far) for kind in dropped]
        ends = [np.where(there_NM[:, kind], start_NM[:, kind] + length_NM[:, kind], -1) for kind in dropped]
        nothing_N = sets.length_N
        begin_N = np.minimum.reduce([*begins, nothing_N])
        self.unneeded_begin_N: np.ndarray = begin_N
        """First byte of what is not kept; the sample's length where all is."""
        self.unneeded_end_N: np.ndarray = np.maximum.reduce([*ends, begin_N])
        self.rest_length_N: np.ndarray = (
            sets.length_N - self.latent_bytes_N - (self.unneeded_end_N - self.unneeded_begin_N)
        )
        """Bytes of the rest."""
        behind_latent = (start_NM >= latent_end_N[:, None]) * self.latent_bytes_N[:, None]
        dropped_bytes_N = self.unneeded_end_N - self.unneeded_begin_N
        behind_unneeded = (start_NM >= self.unneeded_end_N[:, None]) * dropped_bytes_N[:, None]
        self.rest_start_NM: np.ndarray = start_NM - behind_latent - behind_unneeded
        """First byte of each kept member in the rest; of the latent's npy header for the latent."""
        self.is_regular_N: np.ndarray = self._regular(sets, latent_end_N)

    def _regular(self, sets: SampleSets, latent_end_N: np.ndarray) -> np.ndarray:
        """Samples that can be read into place: latent first, then texts, each after a header, json last."""
        start_NM, length_NM = sets.member_start_NM, sets.member_length_NM
        header_N = self.latent_begin_N - start_NM[:, _LATENT]
        regular = (start_NM[:, _LATENT] == _TAR_BLOCK) & (self.latent_bytes_N > 0)
        regular &= (header_N >= _LEAST_NPY_HEADER) & (header_N < _MOST_NPY_HEADER)
        end_N = latent_end_N
        for kind in range(1, len(MEMBER_ORDER)):
            there = start_NM[:, kind] >= 0
            regular &= ~there | (start_NM[:, kind] >= end_N + _TAR_BLOCK)
            end_N = np.where(there, start_NM[:, kind] + length_NM[:, kind], end_N)
        regular &= (end_N <= sets.length_N) & (sets.offset_N >= 0) & (length_NM >= 0).all(axis=1)
        regular &= self.name_length_N + _LONGEST_SUFFIX <= _TAR_NAME_BYTES
        needed = [*_TEXTS, _JSON]
        regular &= (start_NM[:, needed] >= 0).all(axis=1)
        return np.asarray(regular)


def _names_as_bytes(clip_id_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    encoded = [clip_id.encode() for clip_id in clip_id_N]
    length_N = np.fromiter(map(len, encoded), np.int64, len(encoded))
    width = max(1, int(length_N.max(initial=0)))
    return np.array(encoded, f"S{width}").view(np.uint8).reshape(-1, width), length_N
