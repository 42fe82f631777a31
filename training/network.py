"""The thing that is trained: the DiT with the alignment projector beside it, and one micro-batch's losses as one forward pass.

Both modules hang under one root, so that FSDP2 gathers every parameter inside the root's forward, and the losses are part of it: ranks cannot
differ in what they touch. The losses are sums over clips; the trainer divides by the counts of the whole step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from schemas.shards import SetInfo
from training.alignment import AlignmentProjector, alignment_loss
from training.batch import TrainingBatch
from training.config import TrainConfig
from training.flow import flow_loss, interpolate, model_input, timestep_of
from training.model import MotifVideoDiT

__all__ = ["BatchLosses", "TrainingNetwork", "build_network"]


@dataclass(frozen=True, kw_only=True)
class BatchLosses:
    """Sums over the clips of a micro-batch."""

    flow_total: Tensor
    """Of each clip's mean squared velocity error."""
    repa_total: Tensor | None
    """Of each clip's mean cosine distance; None when alignment is off."""


class TrainingNetwork(nn.Module):
    """`dit`, and `projector` when alignment is on."""

    def __init__(self, dit: MotifVideoDiT, projector: AlignmentProjector | None, tap_block: int | None) -> None:
        super().__init__()
        self.dit = dit
        self.projector = projector
        self.tap_block = tap_block

    def forward(self, batch: TrainingBatch) -> BatchLosses:
        """Losses of one micro-batch."""
        noisy = interpolate(batch.clean_BCTYX, batch.noise_BCTYX, batch.sigma_B)
        output = self.dit(
            model_input(noisy, batch.clean_BCTYX, batch.first_frame_given_B),
            timestep_of(batch.sigma_B),
            batch.text_BED,
            batch.text_mask_BE,
            route=batch.route,
            tap=self.tap_block,
        )
        flow = flow_loss(output.velocity_BCTYX, batch.clean_BCTYX, batch.noise_BCTYX)
        if self.projector is None:
            return BatchLosses(flow_total=flow.total, repa_total=None)
        assert output.tapped_BLD is not None and batch.teacher_BLF is not None
        aligned = alignment_loss(
            self.projector(output.tapped_BLD), batch.teacher_BLF, batch.has_teacher_B, output.kept_BK
        )
        return BatchLosses(flow_total=flow.total, repa_total=aligned.total)

    def velocity(
        self,
        latent_BCTYX: Tensor,
        timestep_B: Tensor,
        text_BED: Tensor,
        text_mask_BE: Tensor | None,
        image_BID: Tensor | None,
        /,
    ) -> Tensor:
        """The DiT alone, dense, for evaluation; sharded, it gathers the parameters as `forward` does."""
        return self.dit(latent_BCTYX, timestep_B, text_BED, text_mask_BE, image_BID).velocity_BCTYX


def build_network(config: TrainConfig, info: SetInfo) -> TrainingNetwork:
    """The network on the meta device, for sets like `info`; `parallel.shard_network` gives it memory and starting weights.

    That the widths are those of the sets was checked by `run_setup.prepare_run`.
    """
    shape = config.model
    with torch.device("meta"):
        dit = MotifVideoDiT(shape)
        if config.repa is None:
            return TrainingNetwork(dit, None, None)
        assert info.teacher_width is not None
        projector = AlignmentProjector(shape.width, info.teacher_width, config.repa.hidden_width)
    return TrainingNetwork(dit, projector, config.repa.tap_block)
