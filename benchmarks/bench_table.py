"""What the benchmark scripts share: the table that is printed and the JSON that `--json FILE` writes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Row", "machine", "row", "show", "write"]

Row = Mapping[str, Any]


def row(metric: str, value: float, unit: str, *, goal: float | None, better: str, peer: float | None = None) -> Row:
    """One line of the result: `better` is higher or lower, `peer` the other side's value in the same run."""
    return {"metric": metric, "value": value, "unit": unit, "goal": goal, "better": better, "peer": peer}


def machine() -> str:
    """Processor family, cores, Python and, if the script computed on one, the GPU, as the table names them."""
    torch = sys.modules.get("torch")
    gpu = (
        f", {torch.cuda.get_device_name()}, torch {torch.__version__}" if torch and torch.cuda.is_initialized() else ""
    )
    return f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}{gpu}"


def _head() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()


def show(rows: Sequence[Row]) -> None:
    """Print the rows as one table."""
    for line in rows:
        peer = "" if line["peer"] is None else f"  peer {line['peer']:.4g}"
        goal = (
            "" if line["goal"] is None else f"  goal {'>=' if line['better'] == 'higher' else '<='} {line['goal']:.4g}"
        )
        print(f"{line['metric']:44} {line['value']:10.4g} {line['unit']:22}{goal}{peer}")


def write(path: Path | None, rows: Sequence[Row]) -> None:
    """Write commit, machine and rows, if a file was asked for. BENCH_COMMIT names the commit of a copy that has no `.git`."""
    if path is None:
        return
    commit = os.environ.get("BENCH_COMMIT") or _head()
    values = {"commit": commit, "machine": machine(), "rows": [dict(line) for line in rows]}
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
