"""Packing: the order over shards, the bytes of a tar, and that plain readers find what the samples table says."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation.pack import PackEntry, PackSettings, assemble_shard, finish_set, plan_shards, shard_info
from schemas.buckets import latent_frames
from schemas.errors import DataError
from schemas.shards import MEMBER_ORDER, SampleRecord, read_set_info, samples_path, shard_name
from schemas.tables import SAMPLES, read_table

Samples = list[dict[str, Any]]
EntryMaker = Callable[..., PackEntry]


@st.composite
def sample_lists(draw: st.DrawFn) -> Samples:
    counts = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    samples: Samples = []
    for bucket, count in enumerate(counts):
        sources = draw(st.integers(1, 6))
        for number in range(count):
            size = 1000 * (bucket + 1)
            place = {"bucket": f"bucket{bucket}", "source": f"source{number % sources}"}
            samples.append({"clip_id": f"{bucket}-{number}", "size_bytes": size, **place})
    return samples


@given(sample_lists(), st.integers(1, 20), st.integers(0, 3))
def test_every_shard_looks_like_the_whole(samples: Samples, per_shard: int, seed: int) -> None:
    """Each clip once; of each bucket, every shard has its share to within one clip."""
    shards = plan_shards(samples, PackSettings(target_shard_samples=per_shard, seed=seed))
    ids = [clip for shard in shards for clip in shard]
    assert sorted(ids) == sorted(sample["clip_id"] for sample in samples)
    assert all(shards)
    wanted = min(-(-len(samples) // per_shard), len(samples))
    assert len(shards) <= wanted
    bucket_of = {sample["clip_id"]: sample["bucket"] for sample in samples}
    whole = Counter(bucket_of.values())
    for shard in shards:
        mix = Counter(bucket_of[clip] for clip in shard)
        for bucket, total in whole.items():
            assert abs(mix[bucket] - total / wanted) <= 1


def test_sources_are_spread_too() -> None:
    samples = [
        {"clip_id": f"{source}-{number}", "bucket": "b", "source": str(source), "size_bytes": 1}
        for source in range(4)
        for number in range(16)
    ]
    for shard in plan_shards(samples, PackSettings(target_shard_samples=16)):
        assert Counter(clip.partition("-")[0] for clip in shard) == {"0": 4, "1": 4, "2": 4, "3": 4}


@given(sample_lists(), st.randoms())
def test_the_order_of_the_samples_does_not_matter_and_the_seed_does(samples: Samples, random: Any) -> None:
    settings = PackSettings(target_shard_samples=7)
    planned = plan_shards(samples, settings)
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert plan_shards(shuffled, settings) == planned


def test_another_seed_gives_another_order() -> None:
    samples = [{"clip_id": str(n), "bucket": "b", "source": "s", "size_bytes": 1} for n in range(50)]
    orders = [plan_shards(samples, PackSettings(seed=seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != sorted(orders[0][0])


def test_size_and_number_both_limit_a_shard() -> None:
    samples = [{"clip_id": str(n), "bucket": "b", "source": "s", "size_bytes": 1_000_000} for n in range(40)]
    assert len(plan_shards(samples, PackSettings(target_shard_mb=10))) == 4
    assert len(plan_shards(samples, PackSettings(target_shard_samples=5))) == 8
    assert plan_shards([], PackSettings()) == []
    with pytest.raises(ValueError, match="twice"):
        plan_shards([*samples, samples[3]], PackSettings())


def write(path: Path, array: NDArray[Any]) -> str:
    np.save(path, array, allow_pickle=False)
    return str(path)


@pytest.fixture
def entry(tmp_path: Path) -> EntryMaker:
    """`entry(3, frames=33, teacher=True)`: a sample with members of its own content."""

    def make(number: int, *, frames: int = 33, teacher: bool = True) -> PackEntry:
        random = np.random.default_rng(number)
        clip = hashlib.sha256(str(number).encode()).hexdigest()[:24]
        arrays = {"latent.npy": random.normal(size=(latent_frames(frames), 16, 8, 14))}
        arrays |= {f"text_{kind}.npy": random.normal(size=(5 + number % 3, 6)) for kind in ("long", "short", "first")}
        if teacher:
            arrays["teacher.npy"] = random.normal(size=(latent_frames(frames), 4, 7, 10))
        members = {name: write(tmp_path / f"{clip}.{name}", array.astype(np.float16)) for name, array in arrays.items()}
        record = SampleRecord(
            clip_id=clip,
            frames=frames,
            height=64,
            width=112,
            fps=24.0,
            branch="video_real",
            domain="street",
            source=hashlib.sha256(b"film").hexdigest(),
            start_us=number * 1000,
            end_us=number * 1000 + 500,
            caption_long=f"Long caption {number} with ünicode.",
            caption_short="Short.",
            caption_first="First.",
        )
        return PackEntry(record, "animal", "colour", ("144p", "360p"), members)

    return make


def test_rows_name_the_bytes_that_are_there(entry: EntryMaker, tmp_path: Path) -> None:
    entries = [entry(0), entry(1, frames=1, teacher=False), entry(2, frames=65)]
    tar = tmp_path / shard_name(0)
    rows = assemble_shard(entries, set_name="64p", shard_index=0, tar_path=tar)
    data = tar.read_bytes()
    for ordinal, (one, row) in enumerate(zip(entries, rows, strict=True)):
        assert (row["clip_id"], row["ordinal"], row["shard_index"], row["set"]) == (
            one.record.clip_id,
            ordinal,
            0,
            "64p",
        )
        expected = [name for name in MEMBER_ORDER if name in one.members or name == "json"]
        assert [member["name"] for member in row["members"]] == expected
        for member in row["members"]:
            found = data[member["offset"] : member["offset"] + member["length"]]
            assert zlib.crc32(found) == member["crc32"]
            assert row["offset"] + 512 <= member["offset"] < row["offset"] + row["length"]
            if member["name"] != "json":
                assert found == Path(one.members[member["name"]]).read_bytes()
        record = json.loads(found)
        assert record == one.record.model_dump(mode="json")
        assert row["latent_shape"] == [latent_frames(one.record.frames), 16, 8, 14]
        assert row["has_teacher"] is ("teacher.npy" in one.members)
    ends = [row["offset"] + row["length"] for row in rows]
    assert rows[0]["offset"] == 0
    assert [row["offset"] for row in rows[1:]] == ends[:-1], "samples stand without gaps"
    assert not any(data[ends[-1] :]), "after the last sample there is nothing but the end of the archive"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset 1.0 leaves the tar to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_and_decodes_a_shard(entry: EntryMaker, tmp_path: Path) -> None:
    import webdataset

    entries = [entry(number, frames=(1, 33, 65)[number % 3]) for number in range(6)]
    tar = tmp_path / shard_name(0)
    assemble_shard(entries, set_name="64p", shard_index=0, tar_path=tar)
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [one.record.clip_id for one in entries]
    for sample, one in zip(samples, entries, strict=True):
        for name in ("latent.npy", "text_long.npy", "teacher.npy"):
            assert sample[name].dtype == np.float16
            assert np.array_equal(sample[name], np.load(one.members[name]))
        assert sample["json"]["caption_long"] == one.record.caption_long


def test_the_same_samples_give_the_same_bytes(entry: EntryMaker, tmp_path: Path) -> None:
    entries = [entry(number) for number in range(4)]
    tars = [tmp_path / name / shard_name(0) for name in ("one", "two")]
    rows = [assemble_shard(entries, set_name="64p", shard_index=0, tar_path=tar) for tar in tars]
    assert tars[0].read_bytes() == tars[1].read_bytes()
    assert rows[0] == rows[1]
    assert shard_info(tars[0], 4) == shard_info(tars[1], 4)
    through_json = [PackEntry.from_json(json.loads(json.dumps(one.to_json()))) for one in entries]
    assert through_json == entries


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("latent.npy", np.zeros((9, 16, 8, 14), np.float32), "float32"),
        ("latent.npy", np.zeros((9, 16, 8, 15), np.float16), "expected T, H, W"),
        ("latent.npy", np.zeros((8, 16, 8, 14), np.float16), "expected T, H, W"),
        ("text_long.npy", np.zeros((3, 4, 5), np.float16), "2 dimensions"),
    ],
)
def test_members_of_another_shape_are_refused_and_leave_no_tar(
    entry: EntryMaker, tmp_path: Path, name: str, array: NDArray[Any], message: str
) -> None:
    one = entry(0)
    write(Path(one.members[name]), array)
    with pytest.raises(DataError, match=message):
        assemble_shard([one], set_name="64p", shard_index=0, tar_path=tmp_path / "out" / "a.tar")
    assert not list((tmp_path / "out").iterdir())


def test_pickles_damage_and_gaps_are_refused(entry: EntryMaker, tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    one = entry(0)
    np.save(one.members["text_short.npy"], np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"text_short\.npy"):
        assemble_shard([one], set_name="64p", shard_index=0, tar_path=tar)
    one = entry(0)
    Path(one.members["latent.npy"]).write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="cannot be read"):
        assemble_shard([one], set_name="64p", shard_index=0, tar_path=tar)
    missing = PackEntry(one.record, "", "", (), {"latent.npy": one.members["latent.npy"]})
    with pytest.raises(DataError, match="missing"):
        assemble_shard([missing], set_name="64p", shard_index=0, tar_path=tar)
    assert not tar.exists()


SET_FACTS = {
    "set_name": "64p",
    "fps": 24.0,
    "codec": "dct",
    "codec_fingerprint": "c",
    "latent_channels": 16,
    "text_encoder": "minilm",
    "text_encoder_fingerprint": "t",
    "text_width": 6,
    "teacher_by_branch": {"video_real": "efficientnet_lite0", "image_real": None},
    "teacher_width": 10,
    "seed": 0,
}


def test_a_finished_set_can_be_read_back(entry: EntryMaker, tmp_path: Path) -> None:
    folder = tmp_path / "sets" / "64p"
    entries = {one.record.clip_id: one for one in (entry(number) for number in range(7))}
    samples = [
        {"clip_id": clip, "bucket": "33x64x112", "source": one.record.source, "size_bytes": 1}
        for clip, one in entries.items()
    ]
    planned = plan_shards(samples, PackSettings(target_shard_samples=3))
    rows, shards = [], []
    for index, ids in enumerate(planned):
        tar = folder / shard_name(index)
        rows += assemble_shard([entries[clip] for clip in ids], set_name="64p", shard_index=index, tar_path=tar)
        shards.append(shard_info(tar, len(ids)))
    null_text = np.ones((2, 6), dtype=np.float16)
    info = finish_set(folder, rows=rows, shards=shards, null_text=null_text, facts=SET_FACTS)
    assert read_set_info(folder) == info
    assert np.array_equal(np.load(folder / info.null_text, allow_pickle=False), null_text)
    table = read_table(samples_path(folder), SAMPLES)
    assert sorted(table.column("clip_id").to_pylist()) == sorted(entries)
    for shard in info.shards:
        assert hashlib.sha256((folder / shard.name).read_bytes()).hexdigest() == shard.sha256


def test_rows_and_shards_that_do_not_fit_are_refused(entry: EntryMaker, tmp_path: Path) -> None:
    tar = tmp_path / shard_name(0)
    rows = assemble_shard([entry(0), entry(1)], set_name="64p", shard_index=0, tar_path=tar)
    null_text = np.ones((2, 6), dtype=np.float16)
    with pytest.raises(DataError, match="holds 2 samples, its rows are 1"):
        finish_set(tmp_path, rows=rows[:1], shards=[shard_info(tar, 2)], null_text=null_text, facts=SET_FACTS)
    with pytest.raises(DataError, match="there are 0 shards"):
        finish_set(tmp_path, rows=rows, shards=[], null_text=null_text, facts=SET_FACTS)
    assert not (tmp_path / "set.json").exists()


def test_the_bytes_are_those_of_the_writer_of_webdataset(tmp_path: Path, entry: EntryMaker) -> None:
    import webdataset

    entries = [entry(number) for number in range(3)]
    tar = tmp_path / shard_name(0)
    rows = assemble_shard(entries, set_name="64p", shard_index=0, tar_path=tar)
    theirs = io.BytesIO()
    with webdataset.TarWriter(theirs, encoder=False, mtime=0, user="", group="", mode=0o644) as writer:
        for row in rows:
            for member in row["members"]:
                data = tar.read_bytes()[member["offset"] : member["offset"] + member["length"]]
                assert zlib.crc32(data) == member["crc32"]
                writer.write({"__key__": row["clip_id"], member["name"]: data})
    assert tar.read_bytes() == theirs.getvalue()


def test_an_array_in_another_layout_is_written_in_the_plain_one(tmp_path: Path, entry: EntryMaker) -> None:
    one = entry(0)
    array = np.load(one.members["latent.npy"])
    plain = tmp_path / shard_name(0)
    assemble_shard([one], set_name="64p", shard_index=0, tar_path=plain)
    with open(one.members["latent.npy"], "wb") as stream:
        np.lib.format.write_array(stream, np.asfortranarray(array), version=(2, 0))
    other = tmp_path / shard_name(1)
    assemble_shard([one], set_name="64p", shard_index=0, tar_path=other)
    assert plain.read_bytes() == other.read_bytes()
