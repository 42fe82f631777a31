"""What decides the last bits of a run besides its configuration, plan and samples: processes, threads, versions, the kind of machine.

It stands in the record of every checkpoint. A run that goes on under the same gives the same bits; what differs is named.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.parallel import World

__all__ = ["current_environment"]


def current_environment(world: World, precision: torch.dtype) -> dict[str, Any]:
    """World size and mesh, threads, versions and the kind of machine. A run continued under equal ones gives equal bits."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else _cpu_name()
    return {
        "world_size": world.size,
        "mesh": dict(zip(world.mesh.mesh_dim_names or (), world.mesh.shape, strict=True)),
        "threads": torch.get_num_threads(),
        "precision": str(precision).removeprefix("torch."),
        "device": device,
        "torch": torch.__version__,
        "torch_build": torch.version.git_version,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "reelyard": _package_version(),
        "commit": _commit(),
        **_where_they_matter(world.device),
    }


def _where_they_matter(device: torch.device) -> dict[str, Any]:
    """Facts that only some runs have: ordered kernels of a GPU, and the library of an optimizer in 8 bits, once it is loaded."""
    facts = {}
    if device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        facts["kernels"] = "ordered"
    if "torchao" in sys.modules:
        facts["torchao"] = importlib.metadata.version("torchao")
    return facts


def _cpu_name() -> str:
    """The CPU's model as the kernel names it, else its architecture."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _package_version() -> str | None:
    """Of the installed package; None when it runs from its source folder alone."""
    try:
        return importlib.metadata.version("reelyard")
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source folder, `-dirty` if files were changed since; None where it is no git checkout of its own."""
    source, git = Path(__file__).resolve().parents[2], shutil.which("git")
    if git is None or not (source / ".git").exists():
        return None
    command = [git, "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
