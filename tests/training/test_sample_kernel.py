"""The compiled way and the long way come to the same: the same arrays of what is good, and what the one does not find good the other judges."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import ShardError
from schemas.shards import CAPTION_KINDS, MEMBER_ORDER
from training.loading import direct_read
from training.loading.clip_arrays import ClipArrays
from training.loading.direct_read import Found, Place, SampleReader
from training.loading.sample_kernel import GOOD, THERE, compiled_read
from training.loading.sample_layout import SampleLayout
from training.loading.sample_sets import SampleSets, open_whole_sets
from training.loading.shard_files import ShardFiles

pytestmark = [pytest.mark.timeout(60)]

SHARD = 1
"""Of the set, the one that is read."""


class Bench:
    """Reads one shard's samples, at a glance or the long way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sets: SampleSets = open_whole_sets([folder])
        first, stop = self.sets.first_S[SHARD : SHARD + 2].tolist()
        self.samples = range(first, stop)
        self.path = Path(self.sets.shard_address(SHARD))
        self.original = self.path.read_bytes()
        self.glances: list[list[bool]] = []

    def read(self, *, glance: bool, frames: int | None = None, with_teacher: bool = True) -> list[Found]:
        """All samples, each latent in a place of its own; `frames`: the first ones alone."""
        files, compiled = ShardFiles(), compiled_read()
        assert compiled is not None, "zlib-ng is missing"

        def noted(*arguments: Any) -> np.ndarray:
            found = compiled(*arguments)
            self.glances.append(found.tolist())
            return found

        layout = SampleLayout(self.sets, with_teacher=with_teacher, with_image=False)
        places = [self._place(index, frames) if layout.is_regular_N[index] else None for index in self.samples]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(direct_read, "compiled_read", lambda: noted if glance else None)
            found = SampleReader(self.sets, layout, files).read(self.samples.start, places)
        files.close()
        return found

    def _place(self, index: int, frames: int | None) -> Place:
        shape = self.sets.latent_shape_N4[index].tolist()
        array = np.zeros((min(frames or shape[0], shape[0]), *shape[1:]), np.float16)
        return Place(array, array.reshape(-1).view(np.uint8).data, array.ctypes.data)


def told(found: list[Found]) -> list[Any]:
    """To be compared: the words of errors, all bits of arrays."""
    return [_told(each) for each in found]


def _told(found: Found) -> Any:
    if isinstance(found, ShardError):
        return str(found)
    if not isinstance(found, ClipArrays):
        return bytes(found)
    arrays = [found.latent_TCHW, *(found.text_by_kind[kind] for kind in CAPTION_KINDS)]
    assert not any(array.flags.writeable for array in arrays[1:])
    arrays += [array for array in (found.teacher_TYXC, found.image_ID) if array is not None]
    return found.clip_id, [(array.shape, array.tobytes()) for array in arrays]


@pytest.fixture
def bench(tiny_set: Path, tmp_path: Path) -> Iterator[Bench]:
    yield Bench(Path(shutil.copytree(tiny_set, tmp_path / "tiny")))


@pytest.fixture(scope="module")
def shared_bench(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One for many damages, each undone."""
    return Bench(Path(shutil.copytree(tiny_set, tmp_path_factory.mktemp("kernel") / "tiny")))


@pytest.mark.parametrize("frames", [None, 1, 2])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_good_samples_are_good_at_a_glance(bench: Bench, frames: int | None, with_teacher: bool) -> None:
    at_a_glance = told(bench.read(glance=True, frames=frames, with_teacher=with_teacher))
    assert bench.glances == [[GOOD] * len(bench.samples)]
    assert at_a_glance == told(bench.read(glance=False, frames=frames, with_teacher=with_teacher))
    assert all(isinstance(each, tuple) for each in at_a_glance)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_judged_alike(shared_bench: Bench, data: st.DataObject) -> None:
    """Tar headers and paddings too, where most bits mean nothing to a run."""
    bench = shared_bench
    sample = data.draw(st.sampled_from(list(bench.samples)))
    begin, length = int(bench.sets.offset_N[sample]), int(bench.sets.length_N[sample])
    kind = data.draw(
        st.sampled_from([k for k in range(len(MEMBER_ORDER)) if bench.sets.member_start_NM[sample, k] >= 0])
    )
    near = begin + int(bench.sets.member_start_NM[sample, kind])
    at = data.draw(st.integers(near - 512, near + 200) | st.integers(begin, begin + length - 1))
    changed = bytearray(bench.original)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    bench.path.write_bytes(changed)
    glance = told(bench.read(glance=True))
    assert glance == told(bench.read(glance=False))
    inside = bench.sets.member_start_NM[sample] + begin
    if any(start <= at < start + size for start, size in zip(inside, bench.sets.member_length_NM[sample], strict=True)):
        assert isinstance(glance[sample - bench.samples.start], str), "a flipped bit within a member went unnoticed"
    bench.path.write_bytes(bench.original)


@pytest.mark.parametrize("missing", [1, 700, 5000, None])
def test_a_file_that_ends_early_is_judged_alike(bench: Bench, missing: int | None) -> None:
    last = bench.samples[-1]
    end = int(bench.sets.offset_N[last] + bench.sets.length_N[last])
    bench.path.write_bytes(bench.original[: 0 if missing is None else end - missing])
    glance = told(bench.read(glance=True))
    assert glance == told(bench.read(glance=False))
    assert "is cut off" in glance[-1]


def test_samples_of_a_store_are_judged_alike(bench: Bench) -> None:
    """They lie in memory before they are looked at."""
    expected = told(bench.read(glance=True))
    fsspec.filesystem("memory").pipe("/kernel/shard", bench.original)
    bench.sets.addresses = ("memory://kernel/shard",) * len(bench.sets.addresses)
    bench.glances.clear()
    assert told(bench.read(glance=True)) == expected == told(bench.read(glance=False))
    assert bench.glances == [[GOOD] * len(bench.samples)]


def test_tables_that_machine_code_must_not_follow_are_not_regular(bench: Bench) -> None:
    sets, first = bench.sets, bench.samples.start
    sets.member_length_NM[first, MEMBER_ORDER.index("text_short.npy")] = -5
    sets.offset_N[first + 1] = -1
    sets.clip_id_N[first + 2] = "x" * 90
    regular_N = SampleLayout(sets, with_teacher=True, with_image=False).is_regular_N
    assert not regular_N[first : first + 3].any() and regular_N[first + 3 :].all()


def rewritten(bench: Bench, kind: str, change: Callable[[bytes], bytes]) -> None:
    """Replace a member of the first sample by another, its length and checksum in the table too; only the json, which is last, may grow."""
    sample, member = bench.samples.start, MEMBER_ORDER.index(kind)
    at = int(bench.sets.offset_N[sample] + bench.sets.member_start_NM[sample, member])
    length = int(bench.sets.member_length_NM[sample, member])
    new = change(bench.original[at : at + length])
    assert len(new) == length or (kind == "json" and len(new) <= 512)
    bench.path.write_bytes(bench.original[:at] + new + bench.original[at + max(length, len(new)) :])
    bench.sets.member_length_NM[sample, member] = len(new)
    bench.sets.member_crc32_NM[sample, member] = zlib.crc32(new)


@pytest.mark.parametrize("kind", ["text_long.npy", "latent.npy"])
def test_an_unusual_header_is_read_the_long_way(bench: Bench, kind: str) -> None:
    """Python reads it as numpy does; the compiled way knows the usual form alone."""
    rewritten(bench, kind, lambda data: data.replace(b"'fortran_order': False", b"'fortran_order':False ", 1))
    _is_unusual_and_right(bench)


@pytest.mark.parametrize("more", [b', "author": {"name": "a"}}', b', "text": "the clip_id and a {"}'])
def test_an_unusual_record_is_read_the_long_way(bench: Bench, more: bytes) -> None:
    rewritten(bench, "json", lambda data: data[:-1] + more)
    _is_unusual_and_right(bench)


def test_a_usual_record_may_say_more(bench: Bench) -> None:
    rewritten(
        bench,
        "json",
        lambda data: b'{"fps": 24.0, "clip_id":' + data.partition(b":")[2].strip()[:-1] + b', "text": "a clip_id"}',
    )
    assert all(isinstance(each, tuple) for each in told(bench.read(glance=True)))
    assert bench.glances == [[GOOD] * len(bench.samples)]


def _is_unusual_and_right(bench: Bench) -> None:
    expected = told(bench.read(glance=False))
    assert told(bench.read(glance=True)) == expected and isinstance(expected[0], tuple)
    assert bench.glances[-1] == [THERE] + [GOOD] * (len(bench.samples) - 1)


@pytest.mark.parametrize(
    ("kind", "old", "new", "said"),
    [
        ("text_long.npy", b"'<f2'", b"'<f4'", "is float32"),
        ("text_long.npy", b"'<f2'", b"'>f2'", "is >f2"),
        ("text_long.npy", b"False", b"True ", "fortran order True"),
        ("text_long.npy", b"'shape': (", b"'shape':(0", "leading zeros"),
        ("json", b"}", b', "clip_id": "f"}', "json is that of clip 'f'"),
        ("latent.npy", b"'<f2'", b"'<f8'", "is float64"),
        ("json", b'"clip_id"', b'"clap_id"', "json has no clip_id"),
        ("json", b'"clip_id": "', b'"clip_id": "f', "json is that of clip"),
    ],
)
def test_wrong_contents_with_a_right_checksum_are_judged_alike(
    bench: Bench, kind: str, old: bytes, new: bytes, said: str
) -> None:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    rewritten(bench, kind, change)
    glance = told(bench.read(glance=True))
    assert glance == told(bench.read(glance=False))
    assert isinstance(glance[0], str) and said in glance[0], glance[0]
    assert bench.glances[0][0] == THERE
