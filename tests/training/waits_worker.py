"""Run under torchrun by test_step_clock.py: a sharded network on which rank 1 is late, once with its data and once in its computation.

Prints, on rank 0, RankTimes of three steps as JSON: late data, late computation, nobody late.
"""

import json
import sys
import time
from pathlib import Path

LATE_SECONDS = 0.5


def main() -> None:
    import torch
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    from training.parallel import open_world
    from training.step_clock import RankTimes, watch_collectives

    with open_world(torch.device("cpu")) as world:
        network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        for layer in network:
            fully_shard(layer, mesh=world.mesh)
        fully_shard(network, mesh=world.mesh)
        watch_collectives(network, world.clock)
        found = []
        for late in ("data", "computation", "nobody"):
            is_late = world.rank == 1
            world.barrier()
            world.clock.begin()
            asked = time.perf_counter()
            waited_ms = 0.0
            if late == "data" and is_late:
                time.sleep(LATE_SECONDS)
                waited_ms = 1000 * LATE_SECONDS
            world.sum_int64([1])
            world.clock.gathered(1000 * (time.perf_counter() - asked) - waited_ms)
            with world.clock.micro_batch("1x32x48"):
                if late == "computation" and is_late:
                    time.sleep(LATE_SECONDS)
                network(torch.ones(2, 8)).sum().backward()
            numbers = world.sum_float64(world.clock.exchanged(world.rank, world.size, waited_ms))
            times = RankTimes.of(numbers)
            found.append({"idle_ms": times.idle_ms, "data_wait_ms": times.data_wait_ms, "peak_bytes": times.peak_bytes})
        if world.rank == 0:
            print(json.dumps(found))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main()
