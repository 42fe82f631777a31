"""One dimension scored by the vbench package, run as a script by the interpreter that has the package: a JSON of arguments in, a results file out.

Imports nothing of this project: the interpreter is another one, and may be older.
"""

import json
import sys

__all__ = []


def main(arguments):  # type: ignore[no-untyped-def]  # runs where typing is not ours
    """Call VBench's Python interface as its documentation shows, weights from its cache folder."""
    import torch
    from vbench import VBench

    bench = VBench(torch.device(arguments["device"]), arguments["full_info"], arguments["output"])
    bench.evaluate(
        videos_path=arguments["videos"],
        name=arguments["name"],
        dimension_list=[arguments["dimension"]],
        local=True,
        mode="vbench_standard",
    )


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder; its modules are not for the package to find
    main(json.loads(sys.argv[1]))
