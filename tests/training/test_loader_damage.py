"""Every kind of damage ends in a named error or a logged replacement, for any number of threads, and never in a hang."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.buckets import Bucket
from schemas.errors import ReelyardError, ShardError
from schemas.shards import read_set_info, samples_path, write_set_info
from schemas.tables import SAMPLES, read_table, table_from_rows, write_table
from training.loader import LoadedStep, PlannedLoader, Substitution
from training.loading.clip_arrays import check_clip_id

pytestmark = [pytest.mark.timeout(30)]

Rows = dict[str, dict[str, Any]]


def load(plan: Path, samples: Path, **options: Any) -> list[LoadedStep[Any]]:
    return list(PlannedLoader(plan, samples=[samples], with_teacher=True, **options))


def replaced(steps: list[LoadedStep[Any]]) -> list[Substitution]:
    return [substitution for step in steps for substitution in step.substitutions]


def rows_of(samples: Path) -> Rows:
    return {row["clip_id"]: row for row in read_table(samples_path(samples), SAMPLES).to_pylist()}


def shard_of(samples: Path, row: dict[str, Any]) -> Path:
    return samples / f"shard-{row['shard_index']:06d}.tar"


def member_of(row: dict[str, Any], name: str) -> dict[str, Any]:
    return next(member for member in row["members"] if member["name"] == name)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def flip_bit(samples: Path, row: dict[str, Any], name: str) -> None:
    member = member_of(row, name)
    at = member["offset"] + member["length"] // 2
    byte = shard_of(samples, row).read_bytes()[at]
    patch(shard_of(samples, row), at, bytes([byte ^ 16]))


def other_tar_name(samples: Path, row: dict[str, Any], name: str) -> None:
    header = member_of(row, name)["offset"] - 512
    patch(shard_of(samples, row), header, b"f" * 24)


def member_gone(samples: Path, row: dict[str, Any], name: str) -> None:
    """The tar has another member where the samples table says that this one is."""
    patch(shard_of(samples, row), member_of(row, name)["offset"] - 512, f"{row['clip_id']}.other.npy\0".encode())


@pytest.fixture
def own_set(tiny_set: Path, tmp_path: Path) -> Path:
    """A copy of the set that a test may damage."""
    return Path(shutil.copytree(tiny_set, tmp_path / "tiny"))


def late_clip(plan: Any, lane: int = 0) -> tuple[dict[str, Any], str]:
    """A use whose clip can be replaced by an earlier one."""
    use = [each for each in plan.uses if each["lane"] == lane and each["bucket"] == Bucket(1, 32, 48)][1]
    return use, use["clip_ids"][-1]


DAMAGES: dict[str, tuple[Callable[[Path, dict[str, Any], str], None], str, str]] = {
    "bit in latent": (flip_bit, "latent.npy", r"latent\.npy is damaged \(crc32"),
    "bit in text": (flip_bit, "text_long.npy", r"text_long\.npy is damaged \(crc32"),
    "bit in json": (flip_bit, "json", r"json is damaged \(crc32"),
    "tar name of latent": (other_tar_name, "latent.npy", "the tar has member b'ffff"),
    "tar name of json": (other_tar_name, "json", "the tar has member b'ffff"),
    "member gone": (member_gone, "text_short.npy", "other.npy' where '.*text_short.npy' should be"),
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_clip_is_replaced_and_the_reason_said(tiny_plan: Any, own_set: Path, kind: str, threads: int) -> None:
    damage, member, reason = DAMAGES[kind]
    use, name = late_clip(tiny_plan)
    damage(own_set, rows_of(own_set)[name], member)
    steps = load(tiny_plan.folder, own_set, reader_threads=threads)
    found = replaced(steps)
    assert {substitution.clip_id for substitution in found} == {name}
    assert all(re.search(reason, substitution.reason) for substitution in found), found[0].reason
    assert [len(step.batches) for step in steps] == [4] * 10
    last = next(b for b in steps[use["step"]].batches if (b.lane, b.micro) == (0, use["micro"]))
    substitution = next(each for each in found if each.step == use["step"])
    assert substitution.replaced_by == last.clip_ids[len(use["clip_ids"]) - 1]
    assert last.latent_BTCHW[-1].tobytes() == last.clips[-1].latent_TCHW.tobytes()


def rewritten(samples: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the rows of the samples table, as another packer might have written them."""
    rows = list(rows_of(samples).values())
    for row in rows:
        change(row)
    write_table(samples_path(samples), table_from_rows(SAMPLES, rows), SAMPLES)


def test_a_json_of_another_clip_is_noticed_though_its_checksum_is_right(
    make_plan: Callable[..., Any], own_set: Path, tmp_path: Path
) -> None:
    """A packer that mixed up two clips: table and tar agree, the record does not."""
    plan = make_plan(tmp_path / "first", [own_set])
    _, name = late_clip(plan)
    row = rows_of(own_set)[name]
    record = json.dumps({"clip_id": "0" * 24}).encode()
    patch(shard_of(own_set, row), member_of(row, "json")["offset"], record)

    def change(each: dict[str, Any]) -> None:
        if each["clip_id"] == name:
            member_of(each, "json")["crc32"] = zlib.crc32(record)

    rewritten(own_set, change)
    plan = make_plan(tmp_path / "plan", [own_set])
    found = replaced(load(plan.folder, own_set))
    assert {substitution.clip_id for substitution in found} == {name}
    assert "json is that of clip '000000" in found[0].reason


@pytest.mark.parametrize(
    ("record", "said"),
    [(b'{"clip_id":"a"}', None), (b'{"clip_id": "a", "x": 1}', None), (b'{"clip_id": "b"}', "that of clip 'b'")]
    + [(data, "json has no clip_id") for data in (b"{}", b"[]", b"not json", b'{"text": "\\"clip_id\\": \\"a\\""}')],
)
def test_the_clip_id_of_a_record(record: bytes, said: str | None) -> None:
    if said is None:
        check_clip_id("a", record)
    else:
        with pytest.raises(ShardError, match=said):
            check_clip_id("a", record)


@pytest.mark.parametrize("missing", ["latent.npy", "text_first.npy", "json"])
def test_a_member_that_the_table_lacks_costs_its_clip(
    make_plan: Callable[..., Any], own_set: Path, tmp_path: Path, missing: str
) -> None:
    plan = make_plan(tmp_path / "first", [own_set])
    _, name = late_clip(plan)

    def change(row: dict[str, Any]) -> None:
        if row["clip_id"] == name:
            row["members"] = [member for member in row["members"] if member["name"] != missing]

    rewritten(own_set, change)
    plan = make_plan(tmp_path / "plan", [own_set])
    found = replaced(load(plan.folder, own_set))
    assert {substitution.clip_id for substitution in found} == {name}
    assert f"lists no member {missing}" in found[0].reason


def test_a_latent_of_another_shape_or_type_costs_its_clip(
    make_plan: Callable[..., Any], own_set: Path, tmp_path: Path
) -> None:
    """The header says float64 of a quarter of the shape: as many bytes, and a right checksum."""
    plan = make_plan(tmp_path / "first", [own_set])
    _, name = late_clip(plan)
    row = rows_of(own_set)[name]
    member, path = member_of(row, "latent.npy"), shard_of(own_set, rows_of(own_set)[name])
    data = bytearray(path.read_bytes()[member["offset"] : member["offset"] + member["length"]])
    data[:128] = bytes(data[:128]).replace(b"'<f2'", b"'<f8'")
    patch(path, member["offset"], bytes(data))

    def change(each: dict[str, Any]) -> None:
        if each["clip_id"] == name:
            member_of(each, "latent.npy")["crc32"] = zlib.crc32(bytes(data))

    rewritten(own_set, change)
    plan = make_plan(tmp_path / "plan", [own_set])
    found = replaced(load(plan.folder, own_set))
    assert {substitution.clip_id for substitution in found} == {name}
    assert "latent.npy is float64 with 4 axes, expected float16, 4" in found[0].reason


def test_features_that_the_run_does_not_use_are_read_over(tiny_plan: Any, own_set: Path) -> None:
    rows, use = rows_of(own_set), late_clip(tiny_plan)[0]
    taught = next(rows[name] for name in use["clip_ids"] if rows[name]["has_teacher"])
    flip_bit(own_set, taught, "teacher.npy")
    with_teacher = replaced(load(tiny_plan.folder, own_set))
    without = list(PlannedLoader(tiny_plan.folder, samples=[own_set]))
    assert {each.clip_id for each in with_teacher} == {taught["clip_id"]} and "teacher.npy" in with_teacher[0].reason
    assert not replaced(without)
    assert all(clip.teacher_TYXC is None for step in without for batch in step.batches for clip in batch.clips)


def test_a_shard_of_another_size_is_noted_at_the_start(tiny_plan: Any, own_set: Path) -> None:
    path = own_set / "shard-000004.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:15_000])
    loader: PlannedLoader[Any] = PlannedLoader(tiny_plan.folder, samples=[own_set])
    assert len(loader.notes) == 1
    assert f"shard-000004.tar has 15000 bytes, the plan says {size}" in loader.notes[0]
    found = replaced(list(loader))
    assert found and all(each.shard == 4 and "the file is cut off" in each.reason for each in found)


def test_a_shard_that_vanishes_while_training_costs_its_clips(tiny_plan: Any, own_set: Path) -> None:
    loader: PlannedLoader[Any] = PlannedLoader(tiny_plan.folder, samples=[own_set])
    (own_set / "shard-000005.tar").unlink()
    found = replaced(list(loader))
    assert found and all(each.shard == 5 and "cannot read bytes" in each.reason for each in found)


def test_an_error_of_prepare_is_raised_where_steps_are_taken(tiny_plan: Any, tiny_set: Path) -> None:
    def fail(batch: Any) -> None:
        if batch.step == 3:
            raise RuntimeError("no such thing")

    loader = PlannedLoader(tiny_plan.folder, samples=[tiny_set], prepare=fail)
    seen = []
    with pytest.raises(RuntimeError, match="no such thing"):
        for step in loader:
            seen.append(step.step)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_random_damage_never_hangs_and_gives_every_batch_or_an_error(
    tiny_plan: Any, own_set: Path, threads: int
) -> None:
    """Thirty bytes anywhere in the tars, a hole, and a cut: whatever it hits, all threads say the same."""
    generator = np.random.default_rng(5)
    for path in sorted(own_set.glob("*.tar")):
        for at in generator.integers(0, path.stat().st_size, 5).tolist():
            patch(path, at, bytes(generator.integers(0, 256, 1, dtype=np.uint8)))
    (own_set / "shard-000005.tar").write_bytes((own_set / "shard-000005.tar").read_bytes()[:20_001])
    try:
        told = str(replaced(load(tiny_plan.folder, own_set, reader_threads=threads)))
    except ReelyardError as error:
        told = str(error)
    assert told and told == _told_by_one(tiny_plan.folder, own_set)


def _told_by_one(plan: Path, samples: Path) -> str:
    try:
        return str(replaced(load(plan, samples, reader_threads=1)))
    except ReelyardError as error:
        return str(error)


def test_plain_tarfile_agrees_that_the_copy_is_damaged(own_set: Path) -> None:
    """The damages above are ones that a plain reader would hand on: the tar itself stays readable."""
    row = next(iter(rows_of(own_set).values()))
    flip_bit(own_set, row, "latent.npy")
    with tarfile.open(shard_of(own_set, row)) as archive:
        assert archive.getmember(f"{row['clip_id']}.latent.npy").size == member_of(row, "latent.npy")["length"]


def test_a_set_whose_members_stand_in_another_order_gives_the_same_arrays(
    make_set: Callable[..., Path], make_plan: Callable[..., Any], clip_type: Any, tmp_path: Path
) -> None:
    """Tars of somebody else: the latent last. Such samples are read whole and copied."""
    clips = [clip_type(1), clip_type(33)] * 8
    ours = make_set(tmp_path / "ours", clips)
    theirs = Path(shutil.copytree(ours, tmp_path / "theirs"))
    rows = rows_of(theirs)
    for path in sorted(theirs.glob("*.tar")):
        _reordered(path, [row for row in rows.values() if shard_of(theirs, row) == path])
    write_table(samples_path(theirs), table_from_rows(SAMPLES, list(rows.values())), SAMPLES)
    info = read_set_info(theirs)
    write_set_info(theirs, info)
    left, right = (
        load(make_plan(tmp_path / f"plan-{name}", [place], lanes=1, batch={1: 2, 33: 1}, steps=6).folder, place)
        for name, place in (("ours", ours), ("theirs", theirs))
    )
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one.batches, other.batches, strict=True):
            assert a.clip_ids == b.clip_ids and a.latent_BTCHW.tobytes() == b.latent_BTCHW.tobytes()


def _reordered(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a tar anew with each sample's latent last; the rows follow."""
    data = path.read_bytes()
    written = bytearray()
    for row in rows:
        row["offset"] = len(written)
        members = row["members"][1:] + row["members"][:1]
        for member in members:
            begin, end = member["offset"] - 512, member["offset"] + -(-member["length"] // 512) * 512
            member["offset"] = len(written) + 512
            written += data[begin:end]
        row["members"] = members
        row["length"] = len(written) - row["offset"]
    path.write_bytes(bytes(written) + bytes(10240 - len(written) % 10240))
