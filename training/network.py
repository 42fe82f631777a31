"""The thing that is trained: the DiT with the alignment projectors beside it, and one micro-batch's losses as one forward pass.

All modules hang under one root, so that FSDP2 gathers every parameter inside the root's forward, and the losses are part of it: ranks cannot
differ in what they touch. The losses are sums over clips; the trainer divides by the counts of the whole step. What only some micro-batches need
(a teacher's projector here, the image embedder in the DiT) runs in all of them, over nothing where there is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from schemas.errors import ConfigError
from training.alignment import AlignmentProjector, alignment_loss
from training.batch import TrainingBatch
from training.config import TrainConfig
from training.dit.model import DiTOutput, MotifVideoDiT
from training.flow import flow_loss, interpolate, model_input, timestep_of

__all__ = ["BatchLosses", "TrainingNetwork", "build_network"]


@dataclass(frozen=True, kw_only=True)
class BatchLosses:
    """Sums over the clips of a micro-batch."""

    flow_total: Tensor
    """Of each clip's mean squared velocity error."""
    flow_per_clip_B: Tensor
    """The same before summing, detached."""
    repa_total: Tensor | None
    """Of each clip's mean cosine distance; None when alignment is off."""


class TrainingNetwork(nn.Module):
    """`dit`, and in `projectors` one per teacher (empty without alignment)."""

    def __init__(self, dit: MotifVideoDiT, projectors: Mapping[str, AlignmentProjector], tap_block: int | None) -> None:
        super().__init__()
        self.dit = dit
        self.projectors = nn.ModuleDict(projectors)
        self.tap_block = tap_block

    def forward(self, batch: TrainingBatch) -> BatchLosses:
        """Losses of one micro-batch."""
        noisy = interpolate(batch.clean_BCTYX, batch.noise_BCTYX, batch.sigma_B)
        output = self.dit(
            model_input(noisy, batch.condition_BCTYX, batch.first_frame_given_B),
            timestep_of(batch.sigma_B),
            batch.text_BED,
            batch.text_mask_BE,
            batch.image_BID,
            batch.image_given_B,
            route=batch.route,
            tap=self.tap_block,
        )
        flow = flow_loss(output.velocity_BCTYX, batch.clean_BCTYX, batch.noise_BCTYX)
        return BatchLosses(
            flow_total=flow.total, flow_per_clip_B=flow.per_clip_B, repa_total=self._alignment(output, batch)
        )

    def _alignment(self, output: DiTOutput, batch: TrainingBatch) -> Tensor | None:
        """Over all teachers, each against its own clips."""
        if not self.projectors:
            return None
        assert output.tapped_BLD is not None
        totals = []
        for name, projector in self.projectors.items():
            assert isinstance(projector, AlignmentProjector)
            totals.append(alignment_loss(projector, output.tapped_BLD, batch.teachers[name], output.kept_BK).total)
        return torch.stack(totals).sum()

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


def build_network(config: TrainConfig, teacher_widths: Mapping[str, int]) -> TrainingNetwork:
    """The network on the meta device; `parallel.shard_network` gives it memory and starting weights.

    `teacher_widths` are those of `teachers.open_teachers`, empty without alignment. Projector parameters are named `projectors.<teacher>. ...`.
    """
    shape, repa = config.model, config.repa
    if repa is not None and not teacher_widths:
        raise ConfigError(
            "repa is on, but there is no teacher to align to; set repa=null, or give the network its teachers"
        )
    with torch.device("meta"):
        dit = MotifVideoDiT(shape)
        dit.packs_context = not config.compile  # compiled graphs have fixed shapes
        projectors = {
            name: AlignmentProjector(shape.width, width, repa.hidden_width)
            for name, width in sorted(teacher_widths.items())
            if repa is not None
        }
    tap_block = None if repa is None else repa.tap_block
    return TrainingNetwork(dit, projectors, tap_block)
