"""Train on a plan, as a script for launchers: `torchrun --nproc-per-node 2 training/train.py --config F --plan DIR --samples SET --output RUN`.

The same as `reelyard-train run`, option for option. Python puts a script's own folder first on the path, where our modules would hide
equally named ones of others; it is replaced by the project's folder before anything is imported.
"""

import sys
from pathlib import Path

__all__ = ["main"]


def main() -> int:
    """Run with the command line's arguments; returns the exit code."""
    from training.cli import main as command
    from training.control.launch import tie_to_launcher

    tie_to_launcher()
    return command(["run", *sys.argv[1:]])


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
