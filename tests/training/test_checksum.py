"""Whatever implementation is installed: the crc32 of zlib, over any pieces."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from training.loading.checksum import crc32


@given(st.lists(st.binary(max_size=9000), max_size=4))
def test_pieces_have_the_checksum_of_the_whole(pieces: list[bytes]) -> None:
    found = 0
    for piece in pieces:
        found = crc32(memoryview(piece), found)
    assert found == zlib.crc32(b"".join(pieces)) == crc32(b"".join(pieces))
