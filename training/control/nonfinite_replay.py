"""Look at a dump of `training.control.nonfinite_dump`, and run its micro-batches again with the weights as they were.

The replay is one process on one device, without compilation; it says whether each micro-batch gives the same losses as in the run, and which module
is the first whose output is not finite, in the forward pass, and which parameters' gradients are not, in the backward pass. Here hooks are put on
modules: nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from schemas.config import build_config, read_yaml
from schemas.errors import DataError, UsageError
from training.batch import TrainingBatch
from training.checkpoints.checkpoint import fill_tensors
from training.config import TrainConfig
from training.control.batch_files import read_batches
from training.control.nonfinite_dump import DUMP_FILE, DUMP_VERSION, WEIGHTS, in_words
from training.deterministic import deterministic_kernels
from training.dit.initialization import canonical_name
from training.network import TrainingNetwork, build_network
from training.optimizing.local_parts import local_part
from training.parallel import choose_device, open_world, shard_network

__all__ = ["Replayed", "read_dump", "replay", "words_of_dump"]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One micro-batch, run again."""

    rank: int
    lane: int
    micro: int
    losses: tuple[float, ...]
    """Flow loss of each clip."""
    recorded: tuple[float, ...]
    """The same as the run had them."""
    first_module: str | None
    """The first module whose output is not finite."""
    gradients: tuple[str, ...]
    """Parameters whose gradient is not finite."""

    @property
    def is_same(self) -> bool:
        """Whether the losses are those of the run, to the last bit (NaN is NaN)."""
        return [loss.hex() for loss in self.losses] == [loss.hex() for loss in self.recorded]

    def line(self) -> str:
        """In words."""
        where = f"rank {self.rank}, lane {self.lane}, micro-batch {self.micro}"
        same = "as in the run" if self.is_same else f"the run had {', '.join(f'{loss:.6g}' for loss in self.recorded)}"
        losses = ", ".join(f"{loss:.6g}" for loss in self.losses)
        module = "all outputs are finite" if self.first_module is None else f"first not finite: {self.first_module}"
        gradients = (
            f"gradients of {len(self.gradients)} parameters are not" if self.gradients else "gradients are finite"
        )
        first = f", first {self.gradients[0]}" if self.gradients else ""
        return f"{where}: losses {losses} ({same}); {module}; {gradients}{first}"


_KEYS = ("step", "kind", "value", "config", "batches", "clips", "gradients")


def read_dump(folder: Path) -> dict[str, Any]:
    """`dump.json`; UsageError when the folder is no dump, DataError when it is of another version."""
    path = folder / DUMP_FILE
    if not path.is_file():
        raise UsageError(f"{folder} is no dump: {DUMP_FILE} is missing; give a folder RUN/dumps/step-...")
    dump = read_yaml(path)
    if dump.get("format_version") != DUMP_VERSION:
        raise DataError(
            f"{path}: format_version {dump.get('format_version')!r}, expected {DUMP_VERSION}; "
            "read it with the version of Reelyard that wrote it"
        )
    missing = [key for key in _KEYS if key not in dump]
    if missing:
        raise DataError(f"{path} has no {missing[0]!r}; a dump is written whole: copy it again")
    return dump


def words_of_dump(dump: Mapping[str, Any], folder: Path) -> str:
    """What the run said, with the largest gradients by block."""
    groups = sorted(dump["gradients"]["groups"].items(), key=lambda item: -item[1]["norm"])
    lines = [f"  {name}: norm {group['norm']:.4g}, {group['nonfinite']} not finite" for name, group in groups]
    return "\n".join([in_words(dump, folder), "gradients by block, of the finite entries:", *lines])


def replay(folder: Path, device: str = "auto") -> Iterator[Replayed]:
    """Run every stored micro-batch again, one by one.

    Raises:
        UsageError, DataError: when the folder is no dump or is damaged.
    """
    dump = read_dump(folder)
    config = build_config(TrainConfig, dump["config"], source=str(folder / DUMP_FILE))
    config = config.model_copy(update={"compile": False, "device": device})
    stored = [entry for entry in dump["batches"] if entry["file"] is not None]
    files = {name: read_batches(folder / name) for name in sorted({entry["file"] for entry in stored})}
    if not files:
        raise DataError(f"{folder} holds no micro-batch; copy the dump again")
    first = next(iter(next(iter(files.values())).values()))
    widths = {name: features.features_NLC.shape[2] for name, features in first.teachers.items()}
    with deterministic_kernels(config.deterministic), open_world(choose_device(config.device)) as world:
        network = shard_network(build_network(config, widths), config, world)
        names = {f"model/{canonical_name(name)}": value.detach() for name, value in network.named_parameters()}
        fill_tensors(folder / WEIGHTS, names)
        network.train()
        for entry in stored:
            weight = 0.0 if config.repa is None else config.repa.weight_at(dump["step"])
            yield _run_again(network, files[entry["file"]][entry["key"]], entry, dump, weight)


def _run_again(
    network: TrainingNetwork,
    batch: TrainingBatch,
    entry: Mapping[str, Any],
    dump: Mapping[str, Any],
    repa_weight: float,
) -> Replayed:
    device = next(network.parameters()).device
    network.zero_grad(set_to_none=True)
    with _first_not_finite(network) as found:
        losses = network(batch.to(device))
        total = losses.flow_total if losses.repa_total is None else losses.flow_total + repa_weight * losses.repa_total
        total.backward()
    place = ("rank", "lane", "micro")
    recorded = [clip["loss"] for clip in dump["clips"] if all(clip[key] == entry[key] for key in place)]
    gradients = {
        canonical_name(name): value.grad for name, value in network.named_parameters() if value.grad is not None
    }
    return Replayed(
        rank=entry["rank"],
        lane=entry["lane"],
        micro=entry["micro"],
        losses=tuple(losses.flow_per_clip_B.tolist()),
        recorded=tuple(float(loss) for loss in recorded),
        first_module=found[0] if found else None,
        gradients=tuple(
            name for name, gradient in gradients.items() if not bool(torch.isfinite(local_part(gradient)).all())
        ),
    )


@contextmanager
def _first_not_finite(network: nn.Module) -> Iterator[list[str]]:
    """Names of the modules whose outputs are not finite, in the order in which they finish."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(_: nn.Module, __: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            if any(
                isinstance(one, Tensor) and not bool(torch.isfinite(local_part(one.detach())).all()) for one in tensors
            ):
                found.append(name)

        return look

    handles = [
        module.register_forward_hook(hook(canonical_name(name))) for name, module in network.named_modules() if name
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
