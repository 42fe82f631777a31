"""Which clip a sample is: sizes from JSON, array shapes and names, and every way in which they can be wrong."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from planner.indexing.rules import IndexRules, LeftOutError, npy_shape
from planner.indexing.scanning import split_path
from schemas.config import build_config
from schemas.errors import ConfigError


def rules(**values: Any) -> IndexRules:
    return build_config(IndexRules, {"set_name": "theirs", **values}, source="test")


def size(
    made: IndexRules, record: Any = None, header: bytes | None = None, path: str = "a.json"
) -> tuple[int, int, int]:
    facts = made.facts([path], None if record is None else json.dumps(record).encode(), header)
    return facts.frames, facts.height, facts.width


def npy(shape: tuple[int, ...], version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros(shape, np.float16), version=version)
    return stream.getvalue()[:200]


@pytest.mark.parametrize(
    ("values", "record", "expected"),
    [
        ({}, {"frames": 121, "height": 64, "width": 112}, (121, 64, 112)),
        ({}, {"num_frames": 80, "height": 64, "width": 112}, (65, 64, 112)),
        ({}, {"frames": 20, "height": 64, "width": 112}, (1, 64, 112)),
        ({}, {"frames": 500.0, "height": "64", "width": " 112 "}, (121, 64, 112)),
        (
            {"frames_key": "video.n", "height_key": "size.h", "width_key": "size.w"},
            {"video": {"n": 33}, "size": {"h": 64, "w": 112}},
            (33, 64, 112),
        ),
        ({"default_frames": 1}, {"height": 64, "width": 112}, (1, 64, 112)),
    ],
)
def test_size_from_json(values: dict[str, Any], record: Any, expected: tuple[int, int, int]) -> None:
    assert size(rules(**values), record) == expected


@pytest.mark.parametrize(
    ("values", "shape", "expected"),
    [
        ({}, (9, 16, 8, 14), (33, 64, 112)),
        ({}, (31, 16, 8, 14), (121, 64, 112)),
        ({"npy_axes": "C T H W"}, (16, 17, 8, 14), (65, 64, 112)),
        ({"npy_axes": "H W C", "side_stride": 1}, (64, 112, 3), (1, 64, 112)),
        ({"npy_axes": "T H W C", "frame_stride": 1, "side_stride": 1}, (40, 64, 112, 3), (33, 64, 112)),
    ],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_size_from_an_array(
    values: dict[str, Any], shape: tuple[int, ...], expected: tuple[int, int, int], version: tuple[int, int]
) -> None:
    header = npy(shape, version)
    assert npy_shape(header) == shape
    made = rules(npy_member="latent.npy", **values)
    assert size(made, header=header) == expected


def test_latent_shape_is_the_stored_one() -> None:
    made = rules(npy_member="latent.npy", npy_axes="C T H W")
    assert made.facts([], None, npy((16, 20, 8, 14))).latent_shape == [20, 16, 8, 14]
    assert rules().facts([], b'{"frames": 33, "height": 64, "width": 112}', None).latent_shape == [9, 0, 8, 14]


def test_size_from_a_name() -> None:
    made = rules(regex=r"(?P<frames>\d+)f_(?P<height>\d+)x(?P<width>\d+)")
    assert size(made, path="a/33f_64x112/b.npy") == (33, 64, 112)
    images = rules(regex=r"_(?P<height>\d+)x(?P<width>\d+)", default_frames=1)
    assert size(images, path="a_64x112.jpg") == (1, 64, 112)


def test_json_comes_first_and_a_size_mixes_no_sources() -> None:
    made = rules(npy_member="latent.npy", regex=r"(?P<frames>\d+)f_(?P<height>\d+)x(?P<width>\d+)")
    header = npy((9, 16, 8, 14))
    assert size(made, {"frames": 121, "height": 32, "width": 32}, header, "65f_16x16.a") == (121, 32, 32)
    assert size(made, {"height": 32, "width": 32}, header, "65f_16x16.a") == (33, 64, 112)
    assert size(made, {"height": 32}, None, "65f_16x16.a") == (65, 16, 16)


@pytest.mark.parametrize(
    ("values", "data", "reason"),
    [
        ({}, b"{not json", "not JSON"),
        ({}, b"\xff\xfe\x00", "not JSON"),
        ({}, b"[" * 100_000, "not JSON"),
        ({}, b"[1, 2]", "no JSON object"),
        ({}, b'{"height": 64, "width": 112}', "no frames, height and width"),
        ({}, b'{"frames": 33, "height": 60, "width": 112}', "no multiple of 16"),
        ({}, b'{"frames": 0, "height": 64, "width": 112}', "whole positive"),
        ({}, b'{"frames": 33.5, "height": 64, "width": 112}', "whole positive"),
        ({}, b'{"frames": true, "height": 64, "width": 112}', "whole positive"),
        ({}, b'{"frames": Infinity, "height": 64, "width": 112}', "whole positive"),
        ({}, b'{"frames": 33, "height": 64, "width": 1e30}', "whole positive"),
        ({}, b'{"frames": 33, "height": "tall", "width": 112}', "whole positive"),
        (
            {"keys": {"branch": "kind"}},
            b'{"frames": 33, "height": 64, "width": 112, "kind": "clip"}',
            "its branch is not one of",
        ),
        (
            {"keys": {"fps": "fps"}},
            b'{"frames": 33, "height": 64, "width": 112, "fps": 30}',
            "its frame rate is not the set's 24",
        ),
        (
            {"keys": {"start_us": "t"}},
            b'{"frames": 33, "height": 64, "width": 112, "t": "soon"}',
            "its start_us is not",
        ),
    ],
)
def test_what_cannot_be_planned_is_left_out_with_the_reason(values: dict[str, Any], data: bytes, reason: str) -> None:
    with pytest.raises(LeftOutError) as caught:
        rules(**values).facts(["a.json"], data, None)
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"\x93NUMPY", "no .npy file"),
        (b"PK\x03\x04" * 10, "no .npy file"),
        (b"\x93NUMPY\x01\x00\x10\x00{'shape': oops}", "damaged header"),
        (npy((9, 16, 8, 14))[:40], "damaged header"),
        (npy((9, 8, 14)), "other axes"),
        (npy((0, 16, 8, 14)), "whole positive"),
    ],
)
def test_broken_arrays_are_left_out(header: bytes, reason: str) -> None:
    with pytest.raises(LeftOutError) as caught:
        rules(npy_member="latent.npy").facts([], None, header)
    assert reason in caught.value.reason


def test_columns_from_keys() -> None:
    made = rules(keys={"domain": "meta.topic", "source": "video", "text_tokens_long": "tokens", "fps": "fps"})
    record = {"frames": 33, "height": 64, "width": 112, "meta": {"topic": "sea"}, "video": 17, "tokens": 9.0, "fps": 24}
    assert made.facts([], json.dumps(record).encode(), None).columns == {
        "domain": "sea",
        "source": "17",
        "text_tokens_long": 9,
    }
    del record["meta"]
    assert "domain" not in made.facts([], json.dumps(record).encode(), None).columns


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"regex": "("}, "no regular expression"),
        ({"regex": r"(?P<frames>\d+)"}, "lacks the named groups ['height', 'width']"),
        ({"keys": {"colour": "x"}}, "no such column"),
        ({"npy_axes": "T C"}, "name each axis once"),
        ({"json_member": None}, "nothing tells the size"),
        ({"admissions": ()}, "at least one level"),
        ({"admissions": ("8k",)}, "8k"),
    ],
)
def test_rules_that_make_no_sense_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rules(**values)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.json", ("a", "json")),
        ("a/b.latent.npy", ("a/b", "latent.npy")),
        ("./a.npy", ("./a", "npy")),
        ("a.b/c.d", ("a.b/c", "d")),
        ("a.", ("a", "")),
        ("README", None),
        ("a.b/c", None),
        (".hidden.json", None),
        ("a/._b.json", None),
        ("__meta__", None),
        ("__meta__/a.json", None),
        ("a/__meta__.json", ("a/__meta__", "json")),
    ],
)
def test_keys_are_split_as_webdataset_does(path: str, expected: tuple[str, str] | None) -> None:
    from webdataset.tariterators import base_plus_ext

    assert split_path(path) == expected
    if not path.startswith("__") and "/." not in path:
        assert base_plus_ext(path) == (expected or (None, None))
