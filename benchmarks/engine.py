"""What the two engines cost beside their work: the training loop against the bare model and its saves, the curation executor against NeMo Curator's.

    python benchmarks/engine.py [--part training|curation] [--quick] [--json FILE]

Training (`engine_training.py`): `engine_overhead` is the loop's step minus the bare model's forward, backward and update on the same batches, as
a share of the step, on one unwrapped process, and `_fsdp_1`, `_fsdp_2` beside a network that FSDP2 shards (`engine_fsdp.py`); `save_stall_share` how
long a save blocks the loop, in steps. Curation (`engine_curation.py`): `noop_seconds_first` and `_next`,
`node_loss_seconds`. What the rows are in detail, and the peers, is said there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench_table import Row, show, write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps, fewer tasks; the same metrics")
    parser.add_argument("--part", choices=["training", "curation"], help="one of the two; both by default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    if arguments.part != "curation":
        import engine_training

        rows += engine_training.rows(quick=arguments.quick)
    if arguments.part != "training":
        import engine_curation

        rows += engine_curation.rows(quick=arguments.quick)
    show(rows)
    write(arguments.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
