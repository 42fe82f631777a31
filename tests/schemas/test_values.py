"""Ids, the bucket grid, canonical hashes and atomic files."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.buckets import (
    ASPECTS,
    CLASSES,
    FRAME_COUNTS,
    Bucket,
    bucket_sizes,
    frame_counts_up_to,
    latent_frames,
    nearest_size,
    pixel_frames,
)
from schemas.errors import SchemaError
from schemas.files import TEMPORARY_PREFIX, atomic_folder, atomic_path, write_json
from schemas.hashing import TableHasher, combine_hashes, read_hashed_table, table_hash
from schemas.ids import clip_id, content_hash, fingerprint
from schemas.tables import THUMBNAILS, table_from_rows


def test_content_hash_is_sha256_of_the_bytes() -> None:
    assert content_hash(io.BytesIO(b"abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)))
def test_clip_id_depends_on_every_part(first: tuple[int, int], second: tuple[int, int]) -> None:
    spans = [tuple(sorted(first)), tuple(sorted(second))]
    ids = [clip_id("a" * 64, *span) for span in spans]
    assert (ids[0] == ids[1]) == (spans[0] == spans[1])
    assert clip_id("b" * 64, *spans[0]) != ids[0]


def test_clip_id_refuses_a_backward_span() -> None:
    with pytest.raises(ValueError, match="start <= end"):
        clip_id("a" * 64, 2, 1)


def test_fingerprint_ignores_key_order_and_refuses_nan() -> None:
    assert fingerprint({"a": 1, "b": [1.5]}) == fingerprint({"b": [1.5], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(math.nan)


def test_classes_and_their_landscape_and_portrait_sizes() -> None:
    assert CLASSES == {
        "64p": (64, 112),
        "144p": (144, 256),
        "360p": (368, 640),
        "480p": (480, 832),
        "720p": (736, 1280),
    }
    for name, size in CLASSES.items():
        sizes = dict(zip(ASPECTS, bucket_sizes(name), strict=True))
        assert sizes["16:9"] == size
        assert sizes["9:16"] == size[::-1]
        assert sizes["3:4"] == sizes["4:3"][::-1]
        for height, width in sizes.values():
            assert height % 16 == width % 16 == 0
            assert abs(math.log(height * width / (size[0] * size[1]))) < 0.16


@given(st.sampled_from(sorted(CLASSES)), st.integers(1, 5000), st.integers(1, 5000))
def test_nearest_size_has_the_nearest_aspect(name: str, height: int, width: int) -> None:
    chosen = nearest_size(name, height, width)

    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[1] / size[0]) - math.log(width / height))

    assert distance(chosen) == min(map(distance, bucket_sizes(name)))


def test_latent_frames_of_the_bucket_lengths() -> None:
    assert [latent_frames(count) for count in FRAME_COUNTS] == [1, 9, 17, 31]
    assert [pixel_frames(latent_frames(count)) for count in FRAME_COUNTS] == list(FRAME_COUNTS)
    assert frame_counts_up_to(70) == (65, 33, 1)
    with pytest.raises(ValueError, match="4k"):
        latent_frames(32)


def test_bucket_text_shape_and_tokens() -> None:
    bucket = Bucket(121, 736, 1280)
    assert Bucket.parse(str(bucket)) == bucket
    assert bucket.latent_shape == (31, 92, 160)
    assert bucket.video_tokens == 114_080  # paper's full size
    for text in ("33x64", "34x64x112", "33x60x112", "axbxc"):
        with pytest.raises(ValueError, match="bucket"):
            Bucket.parse(text)


VALUES = st.lists(
    st.fixed_dictionaries(
        {
            "i": st.none() | st.integers(-5, 5),
            "s": st.none() | st.text(max_size=3),
            "l": st.none() | st.lists(st.integers(0, 3), max_size=3),
            "b": st.none() | st.booleans(),
            "f": st.none() | st.floats(-2, 2, width=32),
        }
    ),
    max_size=6,
)
SCHEMA = pa.schema(
    [("i", pa.int32()), ("s", pa.string()), ("l", pa.list_(pa.int64())), ("b", pa.bool_()), ("f", pa.float32())],
)


@given(VALUES, VALUES)
def test_equal_hash_means_equal_values(first: list[dict[str, object]], second: list[dict[str, object]]) -> None:
    tables = [pa.Table.from_pylist(rows, schema=SCHEMA) for rows in (first, second)]
    same = repr(tables[0].to_pylist()) == repr(tables[1].to_pylist())
    assert (table_hash(tables[0]) == table_hash(tables[1])) == same


@given(VALUES, st.integers(0, 6))
def test_hash_ignores_chunks_slices_and_parquet(rows: list[dict[str, object]], cut: int) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    chunked = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    padded = pa.concat_tables([table.slice(0, 1), table]).slice(min(1, table.num_rows))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=2)
    assert table_hash(table) == table_hash(chunked) == table_hash(padded) == table_hash(pq.read_table(buffer))


def test_hash_sees_names_and_types() -> None:
    base = pa.table({"a": pa.array([1], pa.int32())})
    assert table_hash(base) != table_hash(base.rename_columns(["b"]))
    assert table_hash(base) != table_hash(pa.table({"a": pa.array([1], pa.int64())}))
    assert (
        combine_hashes({"x": "1", "y": "2"})
        == combine_hashes({"y": "2", "x": "1"})
        != combine_hashes({"x": "2", "y": "1"})
    )


def test_atomic_path_leaves_the_old_file_on_an_error(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.json"
    write_json(target, {"a": 1})
    before = target.read_bytes()
    with pytest.raises(RuntimeError, match="stop"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["file.json"]


def test_atomic_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(tmp_path / "plan") as folder:
        (folder / "a").write_text("1")
        assert folder.name.startswith(TEMPORARY_PREFIX)
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "plan") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "plan" / "a").read_text() == "1"
    with pytest.raises(FileExistsError, match="exists already"), atomic_folder(tmp_path / "plan") as folder:
        (folder / "b").write_text("2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan"]


def test_a_file_is_hashed_group_by_group_as_the_whole_table(tmp_path: Path) -> None:
    """Strings, lists of structs and nulls, in row groups of seven rows; the columns asked for come back, one of them as codes."""
    rows = [
        {"clip_id": f"{index:024x}", "num_frames": index % 3, "jpeg": bytes(range(index % 5))} for index in range(40)
    ]
    table = table_from_rows(THUMBNAILS, rows)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    kept, digest = read_hashed_table(
        tmp_path / "t.parquet", THUMBNAILS, ["num_frames", "clip_id"], as_codes=["clip_id"]
    )
    assert digest == table_hash(table)
    assert kept.column_names == ["num_frames", "clip_id"]
    assert pa.types.is_dictionary(kept.schema.field("clip_id").type)
    assert kept.column("clip_id").to_pylist() == [row["clip_id"] for row in rows]
    hasher = TableHasher()
    for start in range(0, 40, 9):
        hasher.update(table.slice(start, 9))
    assert hasher.hexdigest() == digest
    empty, of_nothing = read_hashed_table(
        write_and_return(tmp_path / "e.parquet", THUMBNAILS.empty_table()),
        THUMBNAILS,
        ["clip_id"],
        as_codes=["clip_id"],
    )
    assert (empty.num_rows, of_nothing) == (0, table_hash(THUMBNAILS.empty_table()))


def test_a_table_without_rows_has_one_hash_however_it_is_held() -> None:
    schema = THUMBNAILS
    without_chunks = pa.table([pa.chunked_array([], field.type) for field in schema], schema=schema)
    one_chunk = pa.table([pa.array([], field.type) for field in schema], schema=schema)
    assert table_hash(without_chunks) == table_hash(one_chunk)


@pytest.mark.parametrize("change", ["lacks a column", "has one more"])
def test_a_hashed_file_with_other_columns_is_refused(change: str, tmp_path: Path) -> None:
    table = table_from_rows(THUMBNAILS, [{"clip_id": "0" * 24, "num_frames": 1, "jpeg": b""}])
    other = table.drop_columns(["jpeg"]) if "lacks" in change else table.append_column("more", pa.array([1]))
    with pytest.raises(SchemaError, match=r"lacks columns \['jpeg'\]" if "lacks" in change else "unknown columns"):
        read_hashed_table(write_and_return(tmp_path / "t.parquet", other), THUMBNAILS, ["clip_id"])


def write_and_return(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path
