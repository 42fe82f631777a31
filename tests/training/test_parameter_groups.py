"""Which parameters decay and which are Muon's, by name: every parameter of the real network has its place."""

import torch

from schemas.model_shape import ModelShape
from training.alignment import AlignmentProjector
from training.dit.model import MotifVideoDiT
from training.network import TrainingNetwork
from training.optimizing.parameter_groups import decays, fused_parts, named_trained, takes_muon

SHAPE = ModelShape(
    width=32, heads=2, head_width=16, dual_blocks=1, single_blocks=1, decoder_blocks=1,
    text_width=16, image_width=8, rope_axes=(4, 6, 6), timestep_width=32,
)  # fmt: skip


def network() -> TrainingNetwork:
    with torch.device("meta"):
        return TrainingNetwork(MotifVideoDiT(SHAPE), {"dinov2": AlignmentProjector(32, 12, 24)}, 0)


def test_biases_norms_and_embeddings_do_not_decay() -> None:
    found = {name: decays(name, parameter.ndim) for name, parameter in named_trained(network()).items()}
    spared = {name for name, decaying in found.items() if not decaying}
    matrices = {name for name, parameter in named_trained(network()).items() if parameter.ndim >= 2}
    assert spared & matrices == {
        "dit.patch_embed.proj.weight",
        "dit.time_embed.up.weight",
        "dit.time_embed.down.weight",
        *(name for name in matrices if name.startswith(("dit.text_embed.", "dit.image_embed."))),
    }
    assert {name for name in found if name.endswith(("bias", "norm.weight"))} <= spared
    for name in (
        "dit.dual_blocks.0.video_heads.qkv.weight",
        "dit.single_blocks.0.modulation.linear.weight",
        "dit.single_blocks.0.cross.query.weight",
        "dit.final.proj.weight",
        "projectors.dinov2.first.weight",
    ):
        assert found[name], name
    assert len(spared & matrices) >= 5


def test_muon_takes_the_matrices_of_blocks_but_no_modulation() -> None:
    taken = {name for name, parameter in named_trained(network()).items() if takes_muon(name, parameter.ndim)}
    assert {"dit.dual_blocks.0.video_heads.qkv.weight", "dit.decoder_blocks.0.out.weight"} <= taken
    assert not [name for name in taken if "modulation" in name or "_blocks." not in name or name.endswith("bias")]
    dual = {name.removeprefix("dit.dual_blocks.0.") for name in taken if "dual" in name}
    assert dual == {
        f"{stream}_{part}.weight"
        for stream in ("video", "context")
        for part in ("heads.qkv", "out", "mlp.up", "mlp.down")
    }


def test_queries_keys_and_values_are_three_matrices_in_one() -> None:
    whole = network()
    names = {parameter: name for name, parameter in named_trained(whole).items()}
    parts = {names[parameter]: count for parameter, count in fused_parts(whole).items()}
    assert parts["dit.single_blocks.0.heads.qkv.weight"] == 3
    assert all(name.endswith(("qkv.weight", "key_value.weight")) for name in parts)
