"""Import: weights come back bit for bit, in both layouts, and what does not belong is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotifVideoTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from schemas.errors import ConfigError, DataError, ReelyardError, UsageError
from schemas.model_shape import ModelShape
from training.cli import main
from training.dit.model import MotifVideoDiT
from training.exporting.importing import ImportRequest, ImportSummary, expected_sizes, import_weights
from training.exporting.released_layout import to_released
from training.exporting.shape_detection import GivenShape
from training.exporting.transformer_folder import write_transformer
from training.weights import load_weights, read_weights_info

Make = Callable[..., ModelShape]
Network = Callable[[ModelShape], MotifVideoDiT]

RELEASED: dict[str, Any] = {
    "width": 128,
    "heads": 1,
    "head_width": 128,
    "dual_blocks": 1,
    "single_blocks": 2,
    "decoder_blocks": 8,
    "rope_axes": (16, 56, 56),
    "mlp_ratio": 2,
    "sca_query_norm": True,
}
"""The smallest shape that readers of the released layout would understand."""


def read(source: Path, output: Path, **options: Any) -> ImportSummary:
    return import_weights(ImportRequest(source=source, output=output, **options))


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def written(folder: Path, model: MotifVideoDiT, **options: Any) -> Path:
    write_transformer(folder, model.state_dict(), model.shape, **{"dtype": torch.float32, **options})
    return folder


@pytest.mark.parametrize("limit", [10**9, 100_000])
def test_ours_to_diffusers_and_back_is_exact(
    tmp_path: Path, limit: int, small_shape: Make, random_network: Network
) -> None:
    """Through diffusers' own reader and writer, in one file and in shards."""
    model = random_network(small_shape())
    folder = written(tmp_path / "out", model, max_shard_bytes=limit)
    theirs = MotifVideoTransformer3DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    theirs.save_pretrained(tmp_path / "again", max_shard_size=limit)
    summary = read(tmp_path / "again", tmp_path / "weights")
    assert (summary.shape, summary.layout, summary.notes) == (model.shape, "diffusers", ())
    assert equal(load_weights(tmp_path / "weights"), model.state_dict())
    assert read_weights_info(tmp_path / "weights").shape == model.shape


@pytest.mark.parametrize(
    "changes", [{"shared_cross_attention": False}, {"decoder_blocks": 0}, {"image_width": None}, {"dual_blocks": 0}]
)
def test_every_shape_is_found_again(
    tmp_path: Path, changes: dict[str, Any], small_shape: Make, random_network: Network
) -> None:
    model = random_network(small_shape(**changes))
    summary = read(written(tmp_path / "out", model), tmp_path / "weights")
    assert summary.shape == model.shape
    assert equal(load_weights(tmp_path / "weights"), model.state_dict())


def test_weights_trained_unshared_are_imported_when_it_is_said(
    tmp_path: Path, small_shape: Make, random_network: Network
) -> None:
    model = random_network(small_shape(sca_source="own"))
    folder = written(tmp_path / "out", model)
    with pytest.raises(DataError, match="import them with --sca-source own"):
        read(folder, tmp_path / "weights")
    command = ["import", "--from", str(folder), "--output", str(tmp_path / "weights"), "--sca-source"]
    assert main([*command, "mine"]) == 2
    assert main([*command, "own"]) == 0
    assert read_weights_info(tmp_path / "weights").shape == model.shape
    assert equal(load_weights(tmp_path / "weights"), model.state_dict())
    plain = written(tmp_path / "plain", random_network(small_shape(shared_cross_attention=False)))
    with pytest.raises(UsageError, match="no cross-attention with keys and values of its own"):
        read(plain, tmp_path / "other", given=GivenShape(sca_source="own"))


def test_a_pipeline_folder_is_read_at_its_transformer(
    tmp_path: Path, small_shape: Make, random_network: Network
) -> None:
    model = random_network(small_shape())
    written(tmp_path / "pipe/transformer", model)
    (tmp_path / "pipe/model_index.json").write_text("{}")
    read(tmp_path / "pipe", tmp_path / "weights")
    assert equal(load_weights(tmp_path / "weights"), model.state_dict())
    assert str(tmp_path / "pipe/transformer") in read_weights_info(tmp_path / "weights").origin


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "transformer."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_released_layout_gives_the_network_back(
    tmp_path: Path, prefix: str, dtype: torch.dtype, small_shape: Make, random_network: Network, velocity_inputs: Any
) -> None:
    model = random_network(small_shape(**RELEASED))
    released = to_released(model.state_dict(), model.shape)
    file = tmp_path / "motif.safetensors"
    save_file({prefix + name: value.to(dtype).clone() for name, value in released.items()}, file)
    summary = read(file, tmp_path / "weights")
    assert (summary.shape, summary.layout) == (model.shape, "released")
    assert "RoPE theta 10000 is the released model's" in " ".join(summary.notes)
    found = load_weights(tmp_path / "weights")
    assert {value.dtype for value in found.values()} == {torch.float32}
    model.load_state_dict({name: value.to(dtype).float() for name, value in model.state_dict().items()})
    assert equal(found, model.state_dict())
    again = MotifVideoDiT(summary.shape).eval()
    again.load_state_dict(found)
    inputs = velocity_inputs(model.shape)
    with torch.no_grad():
        assert torch.equal(again(*inputs).velocity_BCTYX, model(*inputs).velocity_BCTYX)


def test_other_parts_of_a_checkpoint_are_left_out_and_said(
    tmp_path: Path, small_shape: Make, random_network: Network
) -> None:
    model = random_network(small_shape(**RELEASED))
    released = to_released(model.state_dict(), model.shape)
    tensors = {f"model.diffusion_model.{name}": value.clone() for name, value in released.items()}
    tensors |= {"vae.conv.weight": torch.ones(2), "text_encoders.t5.weight": torch.ones(2)}
    save_file(tensors, tmp_path / "all.safetensors")
    summary = read(tmp_path / "all.safetensors", tmp_path / "weights")
    assert "2 tensors of other parts are left out (text_encoders, vae)" in summary.notes
    save_file({**tensors, "lora.weight": torch.ones(2)}, tmp_path / "more.safetensors")
    with pytest.raises(DataError, match=r"1 do not \(first \['lora\.weight'\]\)"):
        read(tmp_path / "more.safetensors", tmp_path / "more")


def test_the_query_norm_can_be_left_out_as_diffusers_does(
    tmp_path: Path, small_shape: Make, random_network: Network
) -> None:
    """The published diffusers form of the released weights is the released file without this LayerNorm."""
    model = random_network(small_shape(**RELEASED))
    released = to_released(model.state_dict(), model.shape)
    save_file({name: value.clone() for name, value in released.items()}, tmp_path / "motif.safetensors")
    summary = read(tmp_path / "motif.safetensors", tmp_path / "weights", without_query_norm=True)
    assert not summary.shape.sca_query_norm
    kept = {name: value for name, value in model.state_dict().items() if ".cross.query_norm." not in name}
    assert equal(load_weights(tmp_path / "weights"), kept)
    assert main(["export", "--weights-folder", str(tmp_path / "weights"), "--output", str(tmp_path / "out")]) == 0
    MotifVideoTransformer3DModel.from_pretrained(tmp_path / "out", low_cpu_mem_usage=False)
    with pytest.raises(ConfigError, match="has no LayerNorm on the cross-attention's query"):
        read(tmp_path / "out", tmp_path / "other", without_query_norm=True)


def test_tensor_and_parameter_counts_of_the_2b_model() -> None:
    """research: 838 tensors and 1,962,308,032 parameters as released, 902 and 2,037,809,600 for diffusers."""
    released = expected_sizes(ModelShape(), "released")
    unshared = expected_sizes(ModelShape(sca_query_norm=False), "diffusers")
    assert (len(released), numel(released)) == (838, 1_962_308_032)
    assert (len(unshared), numel(unshared)) == (902, 2_037_809_600)
    assert released["single_transformer_blocks.15.cross_attn_query_norm.bias"] == (1536,)
    assert "single_transformer_blocks.16.cross_attn_query_proj.weight" not in released


def numel(sizes: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.empty(size, device="meta").numel() for size in sizes.values())


def damaged(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Change the tensors of a transformer folder in one file."""
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def set_to(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: value(tensors[name])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("proj_out.bias", "proj_out.bias2"), r"1 missing \(proj_out\.bias\); 1 unknown \(proj_out\.bias2\)"),
        (lambda tensors: tensors.pop("x_embedder.proj.weight"), r"0 tensors named \.\.\.x_embedder\.proj\.weight"),
        (lambda tensors: tensors.pop("proj_out.weight"), "tensor proj_out.weight is missing"),
        (lambda tensors: tensors.pop("transformer_blocks.0.ff.net.2.bias"), r"1 missing \(transformer_blocks\.0\.ff"),
        (set_to("proj_out.bias", lambda value: value[:-1]), r"proj_out\.bias is \(63,\), expected \(64,\)"),
        (set_to("proj_out.bias", lambda value: value * torch.nan), "proj_out.bias holds numbers that are not finite"),
        (set_to("proj_out.bias", lambda value: value.double()), "proj_out.bias is of type F64, expected one of F32"),
        (
            set_to("single_transformer_blocks.0.cross_attn.to_v.bias", lambda value: value + 1),
            r"single_transformer_blocks\.0\.cross_attn\.to_v\.bias differs",
        ),
        (
            lambda tensors: tensors.pop("single_transformer_blocks.0.cross_attn.to_q.weight"),
            r"single blocks \[1\] have a cross-attention, expected the first ones without a gap",
        ),
        (
            lambda tensors: tensors.update({"transformer_blocks.0.cross_attn.to_q.weight": torch.ones(2, 2)}),
            "a cross-attention in a dual-stream block",
        ),
        (
            lambda tensors: tensors.update({"transformer_blocks.0.attn.lora_A.weight": torch.ones(2, 2)}),
            r"1 unknown \(transformer_blocks\.0\.attn\.lora_A\.weight\); import the whole file .* without adapters",
        ),
        (
            lambda tensors: tensors.update(
                {"single_transformer_blocks.0.cross_attn_query_proj.weight": torch.ones(2, 2)}
            ),
            "both layouts of Shared Cross-Attention",
        ),
    ],
)
def test_what_does_not_belong_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], None],
    message: str,
    small_shape: Make,
    random_network: Network,
) -> None:
    folder = damaged(written(tmp_path / "in", random_network(small_shape())), change)
    with pytest.raises(ReelyardError, match=message):
        read(folder, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_layers", 3, "num_layers is 3, the tensors .* say 2"),
        ("qk_norm", "layer_norm", "qk_norm is 'layer_norm'"),
        ("num_decoder_layers", 2, "num_decoder_layers is 2, the tensors .* say 1"),
        ("guidance_embeds", True, "guidance_embeds is True, which this network does not know"),
        ("rope_axes_dim", [4, 4, 4], r"RoPE axes \(4, 4, 4\), expected three that add up to the head width 16"),
    ],
)
def test_a_configuration_may_not_contradict_the_tensors(
    tmp_path: Path, key: str, value: object, message: str, small_shape: Make, random_network: Network
) -> None:
    folder = written(tmp_path / "in", random_network(small_shape()))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UsageError, match=message):
        read(folder, tmp_path / "weights")


def test_motif_cores_own_configuration_keys_may_be_null(
    tmp_path: Path, small_shape: Make, random_network: Network
) -> None:
    folder = written(tmp_path / "in", random_network(small_shape()))
    config = json.loads((folder / "config.json").read_text())
    extra = {"pooled_projection_dim": None, "base_latent_size": None}
    (folder / "config.json").write_text(json.dumps({**config, **extra}))
    read(folder, tmp_path / "weights")


def test_what_the_tensors_do_not_say_must_be_said(tmp_path: Path, small_shape: Make, random_network: Network) -> None:
    model = random_network(small_shape(shared_cross_attention=False, rope_theta=256.0))
    folder = written(tmp_path / "in", model)
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match="say it with --decoder-blocks"):
        read(folder, tmp_path / "weights")
    with pytest.raises(UsageError, match="say them with --rope-axes"):
        read(folder, tmp_path / "weights", given=GivenShape(decoder_blocks=1))
    with pytest.raises(UsageError, match="4 decoder blocks, expected 0 to 3"):
        read(folder, tmp_path / "weights", given=GivenShape(decoder_blocks=4))
    command = ["import", "--from", str(folder), "--output", str(tmp_path / "weights"), "--decoder-blocks", "1"]
    assert main([*command, "--rope-axes", "4,6"]) == 2
    assert main([*command, "--rope-axes", "4,6,6", "--rope-theta", "256"]) == 0
    assert read_weights_info(tmp_path / "weights").shape == model.shape
    assert equal(load_weights(tmp_path / "weights"), model.state_dict())
