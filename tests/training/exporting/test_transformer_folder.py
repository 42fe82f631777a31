"""Folders for diffusers: loaded by its own class, equal in output, in one file and in shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotifVideoTransformer3DModel
from safetensors import safe_open

from schemas.errors import ConfigError, DataError
from schemas.model_shape import ModelShape
from training.dit.model import MotifVideoDiT
from training.exporting.transformer_folder import write_transformer


def velocities(
    folder: Path, model: MotifVideoDiT, inputs: Any, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """What our network and the folder's, loaded by diffusers, make of the same inputs."""
    theirs, report = MotifVideoTransformer3DModel.from_pretrained(
        folder, torch_dtype=dtype, low_cpu_mem_usage=False, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        return model(*inputs).velocity_BCTYX, theirs(*inputs).sample


@pytest.mark.parametrize(
    "changes", [{}, {"shared_cross_attention": False}, {"decoder_blocks": 0}, {"image_width": None}, {"dual_blocks": 0}]
)
def test_diffusers_loads_the_folder_with_equal_output(
    tmp_path: Path,
    changes: dict[str, Any],
    small_shape: Callable[..., ModelShape],
    random_network: Callable[[ModelShape], MotifVideoDiT],
    velocity_inputs: Callable[[ModelShape], Any],
) -> None:
    shape = small_shape(**changes)
    model = random_network(shape)
    write_transformer(tmp_path / "out", model.state_dict(), shape, dtype=torch.float32)
    ours, theirs = velocities(tmp_path / "out", model, velocity_inputs(shape))
    assert theirs.abs().max() > 1.0
    assert (ours - theirs).abs().max() < 1e-5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_shards_have_an_index_and_load_alike(
    tmp_path: Path,
    small_shape: Callable[..., ModelShape],
    random_network: Callable[[ModelShape], MotifVideoDiT],
    velocity_inputs: Callable[[ModelShape], Any],
) -> None:
    shape = small_shape()
    model = random_network(shape)
    limit = 100_000
    count = write_transformer(tmp_path, model.state_dict(), shape, dtype=torch.float32, max_shard_bytes=limit)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / name).stat().st_size < limit + 20_000 for name in files)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == count and set(index["weight_map"].values()) == set(files)
    stored = 0
    for name in files:
        with safe_open(tmp_path / name, framework="pt") as handle:
            assert set(handle.keys()) == {key for key, file in index["weight_map"].items() if file == name}
            assert handle.metadata() == {"format": "pt"}
            stored += sum(handle.get_tensor(key).nbytes for key in handle.keys())  # noqa: SIM118
    assert index["metadata"]["total_size"] == stored
    ours, theirs = velocities(tmp_path, model, velocity_inputs(shape))
    assert (ours - theirs).abs().max() < 1e-5


def test_bfloat16_is_the_rounded_weight(
    tmp_path: Path, small_shape: Callable[..., ModelShape], random_network: Callable[[ModelShape], MotifVideoDiT]
) -> None:
    shape = small_shape()
    model = random_network(shape)
    write_transformer(tmp_path, model.state_dict(), shape, dtype=torch.bfloat16)
    theirs = MotifVideoTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, low_cpu_mem_usage=False)
    assert torch.equal(theirs.proj_out.weight, model.final.proj.weight.bfloat16())
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}


def test_copies_of_shared_weights_are_written_out(
    tmp_path: Path, small_shape: Callable[..., ModelShape], random_network: Callable[[ModelShape], MotifVideoDiT]
) -> None:
    shape = small_shape()
    write_transformer(tmp_path, random_network(shape).state_dict(), shape, dtype=torch.float32)
    with safe_open(tmp_path / "diffusion_pytorch_model.safetensors", framework="pt") as handle:
        for layer in ("to_k.weight", "to_k.bias", "to_v.weight", "to_v.bias", "norm_q.weight", "norm_k.weight"):
            copy = handle.get_tensor(f"single_transformer_blocks.1.cross_attn.{layer}")
            assert torch.equal(copy, handle.get_tensor(f"single_transformer_blocks.1.attn.{layer}"))


def test_a_network_that_diffusers_cannot_express_leaves_nothing(
    tmp_path: Path, small_shape: Callable[..., ModelShape], random_network: Callable[[ModelShape], MotifVideoDiT]
) -> None:
    shape = small_shape(sca_query_norm=True)
    with pytest.raises(ConfigError, match="sca_query_norm"):
        write_transformer(tmp_path / "out", random_network(shape).state_dict(), shape, dtype=torch.float32)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_weights_that_are_not_finite_are_not_exported(
    tmp_path: Path, small_shape: Callable[..., ModelShape], random_network: Callable[[ModelShape], MotifVideoDiT]
) -> None:
    model = random_network(small_shape())
    with torch.no_grad():
        model.final.proj.bias[3] = torch.inf
    with pytest.raises(DataError, match=r"tensor proj_out\.bias holds numbers that are not finite"):
        write_transformer(tmp_path, model.state_dict(), model.shape, dtype=torch.float32)
