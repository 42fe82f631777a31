"""Run the benchmarks and write RESULTS.md from what they measured; no figure in it is typed.

    python benchmarks/results.py [--quick] [--measured FOLDER] [SCRIPT ...]

Scripts that are not named keep the section that they have. `--measured` takes what earlier runs wrote with `--json FOLDER/SCRIPT.json`, and runs
nothing. A figure at `figures/SCRIPT.svg` (`learn.py --curves` writes one) is shown below its table.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    "ablations",
    "analyze",
    "captions",
    "copies",
    "dedup",
    "engine",
    "engine_cuda",
    "learn",
    "loader",
    "loss_equality",
    "metrics",
    "overlays",
    "pack",
    "plan_buffer",
    "plan_hard_set",
    "plan_index",
    "plan_mutations",
    "plan_scale",
    "plan_waste",
    "reselect",
    "sample_lengths",
    "score_truth",
    "splitting",
    "step",
)
HEAD = """# Results

Written by `python benchmarks/results.py`. The machines have two shared cores, so read ratios before seconds. "Peer" is what the same run measured
on the other side; each script's docstring says what that is.
"""


def measured(script: str, *, quick: bool) -> dict[str, Any]:
    """What one script wrote with `--json`."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        command = [sys.executable, str(HERE / f"{script}.py"), "--json", str(target), *(["--quick"] if quick else [])]
        subprocess.run(command, check=True)
        values: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return values


def section(script: str, result: dict[str, Any], *, quick: bool) -> str:
    """One script's table in Markdown."""
    purpose = (HERE / f"{script}.py").read_text(encoding="utf-8").split('"""')[1].split("\n")[0]
    command = f"`python benchmarks/{script}.py{' --quick' if quick else ''}`"
    lines = [f"## {script}", "", purpose, "", f"{command}, commit {result['commit'][:12]}, {result['machine']}.", ""]
    lines += ["| metric | value | unit | goal | peer | value / peer |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        goal = "" if row["goal"] is None else f"{'>=' if row['better'] == 'higher' else '<='} {row['goal']:g}"
        peer = "" if row["peer"] is None else f"{row['peer']:.4g}"
        ratio = f"{row['value'] / row['peer']:.2f}" if row["peer"] else ""
        lines.append(f"| {row['metric']} | {row['value']:.4g} | {row['unit']} | {goal} | {peer} | {ratio} |")
    if (HERE / "figures" / f"{script}.svg").is_file():
        lines += ["", f"![{script}: {purpose}](figures/{script}.svg)"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less data, same metrics")
    parser.add_argument("--measured", type=Path, help="folder with SCRIPT.json of runs that were made already")
    parser.add_argument("scripts", nargs="*", choices=[*SCRIPTS, []], help="those to run; all by default")
    arguments = parser.parse_args()
    target = HERE / "RESULTS.md"
    old = target.read_text(encoding="utf-8") if target.exists() else ""
    sections = {text.split("\n", 1)[0]: f"## {text}" for text in re.split(r"^## ", old, flags=re.MULTILINE)[1:]}
    names = arguments.scripts or SCRIPTS
    if arguments.measured:
        names = [name for name in names if (arguments.measured / f"{name}.json").is_file()]
    for script in names:
        if arguments.measured:
            result = json.loads((arguments.measured / f"{script}.json").read_text(encoding="utf-8"))
        else:
            result = measured(script, quick=arguments.quick)
        sections[script] = section(script, result, quick=arguments.quick)
    absent = [f"`{name}.py`" for name in SCRIPTS if name not in sections]
    head = HEAD + (f"\nWithout a run that ended, so without a table: {', '.join(absent)}.\n" if absent else "")
    target.write_text(
        head + "\n" + "\n".join(sections[name].strip() + "\n" for name in sorted(sections) if name in SCRIPTS),
        encoding="utf-8",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
