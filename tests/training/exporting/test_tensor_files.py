"""Which files are read, and what is said of the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from schemas.errors import DataError, UsageError
from training.exporting.tensor_files import open_tensor_source

ANCHOR = "x_embedder.proj.weight"


def store(file: Path, *names: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.full((2,), float(index)) for index, name in enumerate(names)}, file)
    return file


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_tensors_are_read_when_asked_for(tmp_path: Path) -> None:
    file = store(tmp_path / "net.safetensors", f"net.{ANCHOR}", "net.other")
    source = open_tensor_source(file)
    assert source.tensors.sizes == {ANCHOR: (2,), "other": (2,)} and len(source.tensors) == 2
    assert torch.equal(source.tensors["other"], torch.ones(2))
    with pytest.raises(KeyError):
        source.tensors["third"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.pt", "a pickle, which can run code when it is read; only .safetensors files are read"),
        ("net.bin", "a pickle"),
        ("net.ckpt", "a pickle"),
        ("net.gguf", "quantised"),
        ("net.txt", r"of an unknown kind \(\.txt\)"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_other_formats_are_refused_in_words(tmp_path: Path, name: str, message: str, inside: bool) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    if inside and name == "net.txt":
        message = "holds no .safetensors file"
    with pytest.raises(UsageError, match=message):
        open_tensor_source(tmp_path if inside else tmp_path / name)


def one_of_two(folder: Path) -> None:
    store(folder / "a.safetensors", ANCHOR)
    store(folder / "b.safetensors", "other")


def missing_shard(folder: Path) -> None:
    store(folder / "a.safetensors", ANCHOR)
    write_index(folder, {ANCHOR: "a.safetensors", "other": "b.safetensors"})


def outside_shard(folder: Path) -> None:
    store(folder.parent / "a.safetensors", ANCHOR)
    write_index(folder, {ANCHOR: "../a.safetensors"})


def disagreeing_index(folder: Path) -> None:
    store(folder / "a.safetensors", ANCHOR, "extra")
    write_index(folder, {ANCHOR: "a.safetensors"})


def empty_index(folder: Path) -> None:
    write_index(folder, {})


def cut_file(folder: Path) -> None:
    file = store(folder / "a.safetensors", ANCHOR)
    file.write_bytes(file.read_bytes()[:-3])


def two_networks(folder: Path) -> None:
    store(folder / "a.safetensors", f"model.{ANCHOR}", f"model_ema.{ANCHOR}")


def weights_folder(folder: Path) -> None:
    (folder / "model.json").write_text("{}")


def bad_config(folder: Path) -> None:
    store(folder / "a.safetensors", ANCHOR)
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (one_of_two, "holds 2 .safetensors files and 0 indexes"),
        (missing_shard, "file b.safetensors is missing beside it"),
        (outside_shard, "file a.safetensors is missing beside it"),
        (disagreeing_index, r"disagree on 1 tensors \(first \['extra'\]\)"),
        (empty_index, "weight_map is missing or empty"),
        (cut_file, "cannot be read as safetensors"),
        (two_networks, "has 2 tensors named"),
        (weights_folder, "is a weights folder of this project already"),
        (bad_config, "config.json is not valid JSON"),
        (lambda folder: None, "holds no .safetensors file"),
        (lambda folder: folder.rmdir(), "does not exist"),
    ],
)
def test_folders_that_cannot_be_read_say_why(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder)
    with pytest.raises((UsageError, DataError), match=message):
        open_tensor_source(folder)


def test_the_configuration_of_another_model_beside_a_file_is_not_taken(tmp_path: Path) -> None:
    file = store(tmp_path / "a.safetensors", ANCHOR)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert open_tensor_source(file).config is None
    (tmp_path / "config.json").write_text('{"num_single_layers": 3}')
    assert open_tensor_source(file).config == {"num_single_layers": 3}
