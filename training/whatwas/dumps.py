"""What a step left behind that ended its run with a value that is not finite: `<run>/dumps/step-00000012/*.json`, shown as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schemas.errors import DataError

__all__ = ["read_dump"]


def read_dump(run: Path, step: int) -> dict[str, Any] | None:
    """The step's dump, file name to its values, with the folder under `folder`; None when there is none.

    Raises:
        DataError: when a file of it is not JSON.
    """
    folder = run / "dumps" / f"step-{step:08d}"
    files = sorted(folder.glob("*.json"))
    if not files:
        return None
    found: dict[str, Any] = {"folder": str(folder)}
    for path in files:
        try:
            found[path.name] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({error}); a dump is written whole, was it edited?") from error
    return found
