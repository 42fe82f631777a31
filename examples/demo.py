"""The whole path on real video: weights, input, curate, plan, verify, train, kill, resume, sample; `make demo` runs it.

Each part is run through the command that a user would type, printed before it runs. `summary.json` holds what that run measured, and the hard cases
of the input are checked against their known fate. `--videos FOLDER` takes the user's own files instead: then there are no hard cases.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CLASS = "64p"
ADMISSION = "144p"
"""The level that sets below 144p are packed from."""
STEPS = 20
KILL_AFTER_STEP = 8
PROMPT = "a video of people riding bicycles along a road"
WEIGHTS = ("nsfw.opennsfw", "text_detector.ppocr_det", "copies.sscd", "teacher.efficientnet_lite0", "text.minilm")


class Demo:
    """The folders of one demo, and the seconds that its phases took."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase and say that it begins."""
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 2)

    @property
    def curated(self) -> Path:
        """Where curation writes."""
        return self.output / "curated"

    @property
    def set_folder(self) -> Path:
        """The packed set."""
        return self.curated / "sets" / CLASS

    @property
    def plan(self) -> Path:
        """The plan's folder."""
        return self.output / "plan"

    @property
    def training_report(self) -> Path:
        """The page of the killed and continued run beside the whole one."""
        return self.output / "training.html"


def show(command: Sequence[str | Path]) -> list[str]:
    """Print a command as a user would type it, and return its words."""
    words = [str(part) for part in command]
    print("$", shlex.join(words), flush=True)
    return words


def run(command: Sequence[str | Path], *, allow: tuple[int, ...] = (0,)) -> int:
    """Run a command; anything but an allowed exit code ends the demo with its code."""
    code = subprocess.run(show(command), cwd=ROOT).returncode
    if code not in allow:
        raise SystemExit(f"demo: the command above ended with exit code {code}")
    return code


def train_command(demo: Demo, run_folder: Path) -> list[str | Path]:
    """Two gloo processes of the FSDP2 trainer."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "training/train.py",
    ]
    return [
        *launcher,
        *(
            "--config",
            "configs/train/demo.yaml",
            "--plan",
            demo.plan,
            "--samples",
            demo.set_folder,
            "--output",
            run_folder,
        ),
        *("--set", f"steps={STEPS}"),
    ]


def losses(run_folder: Path) -> dict[int, str]:
    """Step to loss as a hex float, from the run's metrics; a step trained twice must have lost the same bits both times."""
    path = run_folder / "metrics.jsonl"
    found: dict[int, str] = {}
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.endswith("}"):
            continue  # the line that a kill cut off
        row = json.loads(line)
        if found.setdefault(row["step"], row["loss_hex"]) != row["loss_hex"]:
            found[row["step"]] = f"{found[row['step']]} and {row['loss_hex']}"
    return found


def checkpoints(run_folder: Path) -> list[int]:
    """Next steps of the run's committed checkpoints."""
    return sorted(int(path.parent.name.rsplit("-", 1)[1]) for path in run_folder.glob("checkpoints/step-*/record.json"))


def train_and_kill(demo: Demo, run_folder: Path) -> int:
    """Start the same training and SIGKILL all its processes once a checkpoint is committed; returns the step it will continue from."""
    command = show(train_command(demo, run_folder))
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and (len(losses(run_folder)) < KILL_AFTER_STEP or not checkpoints(run_folder)):
        time.sleep(0.05)
    if process.poll() is not None:
        raise SystemExit(f"demo: the training to be killed ended by itself with exit code {process.returncode}")
    launcher = psutil.Process(process.pid)
    for victim in [
        launcher,
        *launcher.children(recursive=True),
    ]:  # the launcher gives its workers sessions of their own
        victim.kill()
    process.wait()
    print(f"killed after step {max(losses(run_folder))}; checkpoint at {max(checkpoints(run_folder))}", flush=True)
    return max(checkpoints(run_folder))


def table(demo: Demo, name: str) -> list[dict[str, Any]]:
    """One of curation's tables as rows."""
    from schemas.tables import TABLES, read_table

    return read_table(demo.curated / "tables" / f"{name}.parquet", TABLES[name]).to_pylist()


def hard_case_results(demo: Demo) -> dict[str, dict[str, Any]]:
    """What curation made of each hard case, and whether that is its known fate."""
    from examples.demo_input import HARD_CASES

    decided = {row["clip_id"]: row["decision"] for row in table(demo, "decisions") if row["admission"] == ADMISSION}
    clips = table(demo, "clips")
    results = {}
    for case in HARD_CASES:
        source = next(row for row in table(demo, "sources") if row["uri"].endswith(case.file))
        own = [clip for clip in clips if clip["uri"] == source["uri"]]
        fates = Counter(decided[clip["clip_id"]] for clip in own)
        handled = all(
            "overlay" in clip["crop_flags"] or decided[clip["clip_id"]] in ("overlay", "no_good_crop") for clip in own
        )
        visible = any(clip["overlay_area_ratio"] and decided[clip["clip_id"]] == "keep" for clip in own)
        ok = {
            "duplicate": bool(own) and set(fates) == {"duplicate"},
            "static": bool(own) and set(fates) == {"static"},
            "overlay_handled": bool(own) and handled and not visible,
            "failed": source["status"] == "failed" and bool(source["reason"]),
            "truncated": source["status"] == "truncated" and fates["keep"] > 0,
            "split": len({clip["shot"] for clip in own}) >= 3,
        }[case.expected]
        flags = sorted({flag for clip in own for flag in clip["crop_flags"]})
        found = {
            "status": source["status"],
            "reason": source["reason"],
            "clips": len(own),
            "decisions": dict(fates),
            "crop": flags,
        }
        results[case.file] = {"expected": case.expected, "ok": ok, **found}
    return results


def summarise(
    demo: Demo, *, certificate_ok: bool, full: Path, resumed: Path, resumed_from: int, sample: Path, hard_cases: bool
) -> dict[str, Any]:
    """The facts of this run, read back from what it wrote."""
    from schemas.plan import read_plan_meta
    from schemas.shards import read_set_info

    sources, decisions = table(demo, "sources"), table(demo, "decisions")
    fates = Counter(row["decision"] for row in decisions if row["admission"] == ADMISSION)
    kept = fates.pop("keep", 0)
    statuses = Counter(row["status"] for row in sources)
    meta = read_plan_meta(demo.plan)
    full_losses, resumed_losses = losses(full), losses(resumed)
    steps = sorted(full_losses)
    summary = {
        "sources": len(sources),
        "clips": len(table(demo, "clips")),
        "kept": kept,
        "rejected_by_reason": dict(sorted(fates.items())),
        "failed": statuses["failed"] + statuses["quarantined"],
        "truncated": statuses["truncated"],
        "duplicates": fates["duplicate"],
        "buckets": len(meta.batches),
        "shards": len(read_set_info(demo.set_folder).shards),
        "lanes": meta.num_lanes,
        "steps_planned": meta.num_steps,
        "epochs_planned": meta.num_epochs,
        "utilisation": meta.used_share,
        "certificate_ok": certificate_ok,
        "train_steps": len(steps),
        "first_loss": float.fromhex(full_losses[steps[0]]),
        "last_loss": float.fromhex(full_losses[steps[-1]]),
        "resumed_from_step": resumed_from,
        "resume_bit_identical": 0 < resumed_from < STEPS and len(steps) == STEPS and resumed_losses == full_losses,
        "sample_mp4": str(sample),
        "seconds_by_phase": demo.seconds,
    }
    if hard_cases:
        summary["hard_cases"] = hard_case_results(demo)
    return summary


def collect_input(demo: Demo, videos: Path | None) -> Path:
    """The folder that curation reads: the user's own, or the collected one."""
    if videos is not None:
        if not videos.is_dir():
            raise SystemExit(f"demo: --videos {videos} is not a folder; give a folder of video and image files")
        return videos.resolve()
    from examples.demo_input import collect

    folder = demo.output / "input"
    print(f"{len(collect(folder))} files in {folder}")
    return folder


def main() -> int:
    """Run everything; exit code 1 when a fact of the summary is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything that the demo writes")
    parser.add_argument("--videos", type=Path, default=None, help="your own folder of videos and images")
    arguments = parser.parse_args()
    demo = Demo(arguments.output.resolve())
    full, resumed, sample = demo.output / "train", demo.output / "train_resumed", demo.output / "sample.mp4"
    for folder in (demo.plan, full, resumed):
        shutil.rmtree(folder, ignore_errors=True)
    with demo.phase("weights"):
        print(
            "The copy detector's weights are not plainly open: their two licence statements are shown below, and `--accept` takes them for this demo."
        )
        run([BIN / "reelyard-curate", "models", "pull", *WEIGHTS, "--accept"])
    with demo.phase("input"):
        source_folder = collect_input(demo, arguments.videos)
    with demo.phase("curate"):
        settings = [f"output={demo.curated}", f"sources={json.dumps([str(source_folder)])}"]
        overrides = [word for setting in settings for word in ("--set", setting)]
        run([sys.executable, "curation/run.py", "--config", "configs/curate_demo.yaml", *overrides])
    with demo.phase("plan"):
        run(
            [
                BIN / "reelyard-plan",
                "build",
                "--samples",
                demo.set_folder,
                "--config",
                "configs/plan_demo.yaml",
                "--output",
                demo.plan,
            ]
        )
        certificate_ok = (
            run([BIN / "reelyard-plan", "verify", demo.plan, "--samples", demo.set_folder], allow=(0, 1)) == 0
        )
    with demo.phase("train"):
        run(train_command(demo, full))
    with demo.phase("kill_and_resume"):
        resumed_from = train_and_kill(demo, resumed)
        run(train_command(demo, resumed))
        run([BIN / "reelyard-train", "report", "--run", resumed, "--compare", full, "--output", demo.training_report])
    with demo.phase("sample"):
        size = ("--frames", "33", "--height", "64", "--width", "112", "--set", "num_steps=20")
        run([BIN / "reelyard-train", "sample", "--run", full, "--prompt", PROMPT, *size, "--output", sample])
    summary = summarise(
        demo,
        certificate_ok=certificate_ok,
        full=full,
        resumed=resumed,
        resumed_from=resumed_from,
        sample=sample,
        hard_cases=arguments.videos is None,
    )
    (demo.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return report(demo, summary)


def report(demo: Demo, summary: dict[str, Any]) -> int:
    """Print the facts and where everything is; 1 when one of them is not as it must be."""
    print("\n== summary")
    print(json.dumps(summary, indent=2))
    places = {
        "tables": demo.curated / "tables",
        "funnel and contact sheets": demo.curated / "report" / "index.html",
        "shards": demo.set_folder,
        "plan": demo.plan,
        "training run": demo.output / "train",
        "training report": demo.training_report,
        "sampled video": Path(summary["sample_mp4"]),
        "summary": demo.output / "summary.json",
    }
    print("\nWhere everything is:")
    for name, path in places.items():
        print(f"  {name:26} {path}")
    wrong = [name for name in ("certificate_ok", "resume_bit_identical") if not summary[name]]
    wrong += [f"hard case {name}" for name, case in summary.get("hard_cases", {}).items() if not case["ok"]]
    wrong += [f"{name} is missing" for name, path in places.items() if not path.exists()]
    if wrong:
        print(f"\ndemo: not as it must be: {'; '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    raise SystemExit(main())
