"""A set read by nothing of ours: tarfile and numpy, to hold the loader against."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

__all__ = ["plain_members"]


def plain_members(samples: Path) -> dict[str, np.ndarray]:
    """Every array of a set by its full member name, through tarfile and numpy alone."""
    arrays = {}
    for path in sorted(samples.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".npy"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    arrays[member.name] = np.load(io.BytesIO(stream.read()), allow_pickle=False)
    return arrays
