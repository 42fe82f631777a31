"""A head on top of an embedding: one linear layer, or several in a row, read from a file.

Covers the plain linear heads, LAION's improved aesthetic predictor and the V2.5 one: their layers have dropout between them and no activation, so at
inference they are a chain of products. Computed by NumPy in float64. Price: a head with activations is refused only if its file shows them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError, ModelMissingError
from schemas.ids import content_hash

__all__ = ["LinearHead", "head_hash"]


def head_hash(path: str | Path) -> str:
    """sha256 of the file."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise ModelMissingError(f"head {found} does not exist; give a .safetensors or torch file")
    with found.open("rb") as stream:
        return content_hash(stream)


class LinearHead:
    """`apply` embeddings of `width`."""

    def __init__(self, path: str | Path) -> None:
        self.fingerprint = head_hash(path)
        self.name = Path(path).stem
        self._layers = _layers(_tensors(Path(path).expanduser()), path)
        self.width = self._layers[0][0].shape[1]
        self.outputs = self._layers[-1][0].shape[0]

    def apply(self, embeddings_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, outputs).

        Raises:
            DataError: the head was trained for embeddings of another width.
        """
        if embeddings_ND.shape[1] != self.width:
            raise DataError(
                f"head {self.name} is for embeddings of {self.width}, this open_clip model gives {embeddings_ND.shape[1]}; "
                "give the model that the head was trained on"
            )
        values = embeddings_ND.astype(np.float64)
        for weight, bias in self._layers:
            values = values @ weight.T + bias
        return values


def _tensors(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every tensor of a .safetensors file, or of a torch file, which may hold nothing but tensors."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            found: Any = load_file(path)
        else:
            import torch

            found = torch.load(path, map_location="cpu", weights_only=True)
            found = found.get("state_dict", found)
            found = {name: value.float().numpy() for name, value in found.items()}
        return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}
    except Exception as error:  # torch, pickle and safetensors raise their own; all mean the same here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"head {path} cannot be read as tensors: {reason}") from error


def _layers(
    tensors: dict[str, NDArray[np.float64]], path: str | Path
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(weight, bias) in the order of the numbers in their names."""
    names = sorted((name for name in tensors if name.endswith("weight")), key=_order)
    layers: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for name in names:
        weight, bias = tensors.pop(name), tensors.pop(f"{name.removesuffix('weight')}bias", None)
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise DataError(f"head {path}: {name} is {list(weight.shape)}; expected linear layers (outputs, inputs)")
        if layers and layers[-1][0].shape[0] != weight.shape[1]:
            raise DataError(f"head {path}: {name} takes {weight.shape[1]} values, the layer before it gives others")
        layers.append((weight, np.zeros(len(weight)) if bias is None else bias))
    if not layers or tensors:
        raise DataError(
            f"head {path} holds {sorted(tensors) or 'nothing'}; expected weights and biases of linear layers"
        )
    return layers


def _order(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdigit())
