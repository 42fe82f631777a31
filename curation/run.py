"""`python curation/run.py --config F [--set key=value] [--dry-run] [--phase NAME]`: the same as `reelyard-curate run`.

A file of its own because `ray job submit -- python curation/run.py ...` wants one. Run as a script, its folder would be first on `sys.path`, before
the standard library; the repository takes its place, so that the code beside this file is what runs, here and in the workers.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Replace the script's folder on `sys.path` and run the command."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [
        str(here.parent),
        *(path for path in sys.path if Path(path or ".").resolve() not in (here, here.parent)),
    ]
    from curation.cli import main as command

    return command(["run", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
