"""Headers of tars: the same members, places and sizes as `tarfile` finds, and every cut or changed byte noticed where it is."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.indexing.headers import BLOCK, TarMember, TarWalk
from planner.indexing.places import find_place
from planner.indexing.ranges import open_ranges

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def walked(path: Path) -> tuple[list[TarMember], TarWalk]:
    place = find_place(str(path))
    assert place is not None
    with open_ranges(place) as reader:
        walk = TarWalk(reader)
        return list(walk), walk


def by_tarfile(path: Path) -> tuple[list[TarMember], int]:
    with tarfile.open(path, "r:") as archive:
        members = [(item.name, item.offset, item.offset_data, item.size) for item in archive if item.isreg()]
        return members, archive.offset


def packed(path: Path, members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT, **headers: str) -> Path:
    with tarfile.open(path, "w", format=kind, pax_headers=headers if kind == tarfile.PAX_FORMAT else None) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_names_and_places_are_those_of_tarfile(kind: str, tmp_path: Path) -> None:
    names = ["plain.json", "a/b/c.latent.npy", "d" * 90 + "/" + "e" * 90 + ".npy", "./dot.json", "x" * 100]
    if kind != "ustar":
        names += ["long/" * 60 + "name.npy", "grüße-日本.json", "n" * 101, "p" * 155 + "/" + "q" * 120]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for number, name in enumerate(names):
            folder = tarfile.TarInfo(f"folder{number}/")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            info = tarfile.TarInfo(name)
            info.size = 700 * number
            info.mtime = 1.5 if kind == "pax" else 1
            archive.addfile(info, io.BytesIO(bytes([number]) * info.size))
            for link, target in ((tarfile.SYMTYPE, "t" * 150 if kind != "ustar" else "t"), (tarfile.LNKTYPE, names[0])):
                info = tarfile.TarInfo(f"link{number}{link.decode()}")
                info.type, info.linkname = link, target
                archive.addfile(info)
    found, walk = walked(path)
    assert (found, walk.end) == by_tarfile(path)
    assert walk.damage is None and walk.others == 3 * len(names)


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_sizes_beyond_octal(kind: str, tmp_path: Path) -> None:
    """Over 8 GiB: base-256 with GNU, a pax record with PAX. The data is a hole in the file, and is not read."""
    size = 9 << 30
    big = tarfile.TarInfo("big.bin")
    big.size = size
    small = tarfile.TarInfo("small.json")
    small.size = 3
    head = big.tobuf(FORMATS[kind])
    path = tmp_path / "a.tar"
    with path.open("wb") as stream:
        stream.write(head)
        stream.seek(size, os.SEEK_CUR)
        stream.write(small.tobuf(FORMATS[kind]) + b"{}\n".ljust(BLOCK, b"\0") + bytes(1024))
    found, walk = walked(path)
    assert found == [("big.bin", 0, len(head), size), ("small.json", len(head) + size, len(head) + size + BLOCK, 3)]
    assert walk.damage is None
    place = find_place(str(path))
    assert place is not None
    with open_ranges(place) as reader:
        list(TarWalk(reader))
        assert reader.bytes_read < 64 << 10


def test_pax_records_for_all_members(tmp_path: Path) -> None:
    path = packed(
        tmp_path / "a.tar", [("a.json", b"{}"), ("b.json", b"[]")], tarfile.PAX_FORMAT, comment="of all", size="2"
    )
    found, walk = walked(path)
    assert (found, walk.end) == by_tarfile(path) and walk.damage is None


names = st.text("abc/.é ", min_size=1, max_size=120).map(lambda text: f"r/{text.strip('/') or 'x'}")


@given(st.lists(st.tuples(names, st.integers(0, 3000)), max_size=12), st.sampled_from(["gnu", "pax"]))
def test_random_members(tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, int]], kind: str) -> None:
    path = packed(
        tmp_path_factory.mktemp("t") / "a.tar", [(name, b"x" * size) for name, size in members], FORMATS[kind]
    )
    found, walk = walked(path)
    assert (found, walk.end) == by_tarfile(path) and walk.damage is None


@pytest.fixture(scope="module", params=["gnu", "pax"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    members = [
        (f"{'long' * 40 if number == 2 else ''}{number}.json", bytes([65 + number]) * 600) for number in range(5)
    ]
    return packed(tmp_path_factory.mktemp("sound") / "a.tar", members, FORMATS[request.param])


def whole(found: list[TarMember], walk: TarWalk) -> list[TarMember]:
    assert walk.damage is not None
    return [item for item in found if item[2] + item[3] <= walk.damage.offset]


def test_every_cut_is_noticed(sound: Path, tmp_path: Path) -> None:
    members, end = by_tarfile(sound)
    data = sound.read_bytes()
    for cut in [*range(0, end, 97), *range(0, end + 1, BLOCK), end + 100]:
        path = tmp_path / "cut.tar"
        path.write_bytes(data[:cut])
        found, walk = walked(path)
        kept = whole(found, walk)
        assert walk.damage is not None and walk.damage.offset <= cut
        ends = [item[1] for item in members[1:]] + [end]
        complete = sum(limit <= cut for limit in ends)
        assert kept == members[: len(kept)] and complete <= len(kept) <= complete + 1, cut
        assert f"{cut}" in walk.damage.reason or cut == 0


def test_every_changed_header_is_noticed_where_it_is(sound: Path, tmp_path: Path) -> None:
    members, _ = by_tarfile(sound)
    data = bytearray(sound.read_bytes())
    path = tmp_path / "changed.tar"
    for _, start, first_byte, _ in members:
        header = first_byte - BLOCK
        for at in (0, 50, 100, 124, 130, 135, 148, 150, 156, 200, 300, 500):
            old = data[header + at]
            data[header + at] = old ^ 0x01
            path.write_bytes(data)
            data[header + at] = old
            found, walk = walked(path)
            assert walk.damage is not None and walk.damage.offset in (start, header), at
            assert whole(found, walk) == [item for item in members if item[1] < start], at


def test_a_bad_checksum_behind_many_headers(tmp_path: Path) -> None:
    """Checksums are compared in batches; the damage is still the first bad header, not a later one."""
    path = packed(tmp_path / "a.tar", [(f"{number}.txt", b"x") for number in range(3000)])
    members, _ = by_tarfile(path)
    data = bytearray(path.read_bytes())
    data[members[1500][1] + 4] ^= 1
    data[members[2900][1] + 4] ^= 1
    path.write_bytes(data)
    found, walk = walked(path)
    assert walk.damage is not None and walk.damage.offset == members[1500][1]
    assert "the checksum of the header is" in walk.damage.reason
    assert whole(found, walk) == members[:1500]


def test_signed_checksums_of_old_writers_hold(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", [("é" * 20 + ".json", b"{}")])
    data = bytearray(path.read_bytes())
    signed = 256 + sum(struct.unpack_from("148b8x356b", data))
    data[148:156] = f"{signed:06o}\0 ".encode()
    path.write_bytes(data)
    found, walk = walked(path)
    assert walk.damage is None and [item[0] for item in found] == ["é" * 20 + ".json"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"hello", "within a header"),
        (b"not a tar " * 200, "no tar header"),
        (gzip.compress(os.urandom(4000)), "compressed (gzip)"),
        (bytes(100), "within a header"),
    ],
)
def test_what_is_no_tar(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    found, walk = walked(path)
    assert walk.damage is not None and words in walk.damage.reason and not whole(found, walk)


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", [("a.bin", b"x" * 600)])
    data = bytearray(path.read_bytes())
    data[156] = ord("S")
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    path.write_bytes(data)
    _, walk = walked(path)
    assert walk.damage is not None and "sparse" in walk.damage.reason
