"""The shipped set of ablations on real clips, end to end: pack, plan, `reelyard-train ablate`, table. It proves the path and answers nothing.

    python benchmarks/ablations.py [--quick] [--json FILE] [--keep FOLDER]

Clips of 33 frames at 64p from films that PyPI packages ship (DCT latents, MiniLM text states, EfficientNet features): 32 for training in eight
shards, half of them admitted for sft too, and 4 of other spans held out. The plan is built by `reelyard-plan build`, those of the parts by `ablate`.
configs/ablations.yaml is run as it lies there, but for 6 steps of two clips where it says 400, all within its warm-up, and validation before and
after alone. Losses of so few steps say that a run trained and was measured, not which variant is better; nothing here answers a question.

`runs_with_result`: of base, its seeds and all variants. `done_again`: runs that the same command, called once more, takes as done.
`beyond_noise`: variants whose validation loss is beyond the t interval of the base's seeds; peer: how many chance alone would put there.
`validation/NAME`: dense loss on the held-out clips; peer: what it is compared with. `step_s/NAME`: median of a step; peer: of the base.
`--quick`: two seeds of the base, `longer` and `sft`, which begin with it, the latter on data of its own; fewer clips and steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from bench_table import Row, row, show, write

from curation.encoding.settings import EncodeSettings
from curation.encoding.text import TextModels, encode_captions, load_text_models, null_text
from curation.encoding.worker import EncodeModels, encode_clips, load_models
from curation.pack import PackEntry, PackSettings, assemble_shard, finish_set, plan_shards, shard_info
from curation.requests import SourceRequest
from encoders.registry import fetch_many
from schemas.buckets import FPS, nearest_size
from schemas.ids import clip_id, content_hash
from schemas.shards import CAPTION_KINDS, SampleRecord, shard_name

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "ablations.yaml"
SET_NAME, FRAMES = "64p", 33
FILMS = {
    "bikes": "bicycles and people in an old city street at dusk",
    "bigbuckbunny": "a fat white cartoon rabbit in a green meadow",
    "carphone": "a young man with a bow tie talks in the back of a car",
    "multi_shot": "a scene of a music video with a singer",
}
TEXTS = {
    "long": "{}, window {} of the film, seen by a camera that moves a little",
    "short": "{}",
    "first": "{}, a still",
}


@dataclass(frozen=True)
class Scale:
    """Full or quick."""

    train: dict[str, int]
    """Film to its first so many windows."""
    held_out: dict[str, int]
    """Film to so many windows after those."""
    per_shard: int
    steps: int
    seeds: int
    only: str


FULL = Scale(
    {"bikes": 6, "bigbuckbunny": 3, "carphone": 2, "multi_shot": 21}, {"bikes": 1, "multi_shot": 3}, 4, 6, 4, ""
)
QUICK = Scale({"bikes": 4, "multi_shot": 4}, {"multi_shot": 2}, 4, 1, 2, "sft")
TOKENS = 504
"""Of a micro-batch: two clips."""


def crop_of(path: Path) -> dict[str, int]:
    """The middle of a film's pictures at 16:9."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        height, width = stream.height, stream.width
    tall, wide = min(height, width * 9 // 16), min(width, height * 16 // 9)
    top, left = (height - tall) // 2, (width - wide) // 2
    return {"top": top, "left": left, "bottom": top + tall, "right": left + wide}


class Packer:
    """Windows of films to sets, by the functions that the curation's workers run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = EncodeSettings(sets=(SET_NAME,), device="cpu")
        fetch_many(["text.minilm", "teacher.efficientnet_lite0"])
        self.films = {name: Path(path) for name, path in self._films().items()}
        self.models: EncodeModels = load_models(self.settings)
        self.text_models: TextModels = load_text_models(self.settings)

    def _films(self) -> dict[str, Any]:
        found = fetch_many([f"media.{name}" for name in FILMS])
        return {name: found[f"media.{name}"] for name in FILMS}

    def pack(self, name: str, windows: dict[str, range], per_shard: int) -> Path:
        """Encode the windows and pack them; every other clip is admitted for sft as well."""
        cache, target = self.folder / f"{name}-encoded", self.folder / name
        cache.mkdir(parents=True)
        target.mkdir()
        entries = [entry for film, found in windows.items() for entry in self._encode(film, found, cache)]
        by_id = {entry.record.clip_id: entry for entry in entries}
        samples = [
            {"clip_id": one, "bucket": "one", "source": entry.record.source, "size_bytes": 1}
            for one, entry in by_id.items()
        ]
        rows, infos = [], []
        for index, ids in enumerate(plan_shards(samples, PackSettings(target_shard_samples=per_shard))):
            tar = target / shard_name(index)
            some = [by_id[one] for one in ids]
            rows += assemble_shard(some, set_name=SET_NAME, shard_index=index, tar_path=tar)
            infos.append(shard_info(tar, len(some)))
        null = null_text(self.settings, self.text_models)
        finish_set(target, rows=rows, shards=infos, null_text=null, facts=self._facts(null.shape[1]))
        return target

    def _facts(self, text_width: int) -> dict[str, Any]:
        return {
            "set_name": SET_NAME,
            "fps": float(FPS),
            "codec": self.settings.codec,
            "codec_fingerprint": self.models.codec.fingerprint,
            "latent_channels": self.models.codec.channels,
            "text_encoder": self.settings.text_encoder,
            "text_encoder_fingerprint": self.text_models.encoder.fingerprint,
            "text_width": text_width,
            "teacher_by_branch": self.settings.teacher_by_branch,
            "teacher_width": next(iter(self.models.teachers.values())).channels,
            "seed": 0,
        }

    def _encode(self, film: str, windows: range, cache: Path) -> list[PackEntry]:
        path, crop = self.films[film], crop_of(self.films[film])
        with path.open("rb") as stream:
            digest = content_hash(stream)
        spans = [(round(at * FRAMES / FPS * 1e6), round((at + 1) * FRAMES / FPS * 1e6)) for at in windows]
        rows = [
            {
                "clip_id": clip_id(digest, first, stop),
                "start_us": first,
                "end_us": stop,
                "frames": FRAMES,
                "clip_fps": float(FPS),
                "crop": crop,
                **{f"caption_{kind}": TEXTS[kind].format(FILMS[film], at) for kind in CAPTION_KINDS},
            }
            for at, (first, stop) in zip(windows, spans, strict=True)
        ]
        request = SourceRequest(
            uri=path.as_uri(),
            path=str(path),
            content_hash=digest,
            size_bytes=path.stat().st_size,
            kind="video",
            branch="video_real",
            domain="",
            licence="",
        )
        failed = encode_clips(request, rows, self.settings, self.models, cache)
        assert not failed, failed
        encode_captions(rows, self.settings, self.text_models, cache)
        return [
            self._entry(one, digest, cache, ("144p", "sft") if at % 2 else ("144p",)) for at, one in enumerate(rows)
        ]

    def _entry(self, one: dict[str, Any], digest: str, cache: Path, levels: tuple[str, ...]) -> PackEntry:
        crop = one["crop"]
        height, width = nearest_size(SET_NAME, crop["bottom"] - crop["top"], crop["right"] - crop["left"])
        kept = ("clip_id", "frames", "start_us", "end_us", *(f"caption_{kind}" for kind in CAPTION_KINDS))
        record = SampleRecord(
            **{key: one[key] for key in kept},
            height=height,
            width=width,
            fps=float(FPS),
            branch="video_real",
            domain="",
            source=digest,
        )
        members = {
            f"{kind}.npy": str(cache / f"{record.clip_id}.{SET_NAME}.{kind}.npy") for kind in ("latent", "teacher")
        }
        members |= {f"text_{kind}.npy": str(cache / f"{record.clip_id}.text_{kind}.npy") for kind in CAPTION_KINDS}
        return PackEntry(record, "", "", levels, members)


def run(command: Sequence[object]) -> float:
    """Run one of the package's commands; seconds. Anything but exit code 0 ends the benchmark."""
    program, *arguments = map(str, command)
    start = time.perf_counter()
    subprocess.run([str(Path(sys.executable).with_name(program)), *arguments], cwd=ROOT, check=True)
    return time.perf_counter() - start


def build_plan(folder: Path, samples: Path, steps: int) -> Path:
    """The base's plan: one lane, one micro-batch of two clips a step."""
    settings = {
        "lanes": 1,
        "micro_per_step": 1,
        "epochs": None,
        "max_steps": steps,
        "admission": "144p",
        "max_tokens_per_micro_batch": TOKENS,
        "max_buffer_mb": 512,
        "anneal_steps": 200,
        "cost": {"preset": "tiny", "text_tokens": 64, "teraflops_per_second": 0.05},
    }
    config = folder / "plan.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    run(["reelyard-plan", "build", "--samples", samples, "--config", config, "--output", folder / "plan"])
    return folder / "plan"


def measure(folder: Path, scale: Scale) -> list[Row]:
    """Pack, plan, run, run again; rows of the table."""
    start = time.perf_counter()
    packer = Packer(folder / "sets")
    first = {film: range(count) for film, count in scale.train.items()}
    after = {film: range(scale.train[film], scale.train[film] + count) for film, count in scale.held_out.items()}
    train, held_out = packer.pack("train", first, scale.per_shard), packer.pack("held_out", after, scale.per_shard)
    packed_s = time.perf_counter() - start
    plan, output = build_plan(folder, train, scale.steps), folder / "ablations"
    sources = ["--plan", plan, "--samples", train, "--validation", held_out, "--output", output]
    counts = ["--steps", scale.steps, "--seeds", scale.seeds, *(["--only", scale.only] if scale.only else [])]
    validation = f"base.validation={{every_steps: {scale.steps}, num_timesteps: 4, weights: [ema]}}"
    command = ["reelyard-train", "ablate", "--config", CONFIG, *sources, *counts, "--set", validation]
    run([*command, "--dry-run"])
    seconds = run(command)
    before = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/run/metrics.jsonl")}
    again_s = run(command)
    table = json.loads((output / "table.json").read_text(encoding="utf-8"))
    kept = sum(path.stat().st_mtime_ns == when for path, when in before.items())
    return [
        *summary(table, kept),
        row("packing_s", packed_s, "s", goal=None, better="lower"),
        row("ablate_s", seconds, "s", goal=None, better="lower"),
        row("ablate_again_s", again_s, "s", goal=None, better="lower", peer=seconds),
        *runs_rows(table),
    ]


def summary(table: dict[str, Any], kept: int) -> list[Row]:
    """How many runs came through, and the noise."""
    rows = table["rows"]
    done = sum(one["result"] is not None for one in rows)
    beyond = sum(one["within_noise"]["validation_loss"] is False for one in rows)
    noise = table["noise"]["validation_loss"]
    expected = table["false_alarms"]["expected"]
    return [
        row("runs_with_result", done, "runs", goal=len(rows), better="higher"),
        row("done_again", kept, "runs", goal=len(rows), better="higher"),
        row("noise_to_base", noise["to_base"], "validation loss", goal=None, better="lower"),
        row("beyond_noise", beyond, "variants", goal=None, better="lower", peer=expected),
    ]


def runs_rows(table: dict[str, Any]) -> list[Row]:
    """Validation loss and seconds of every run that has a result."""
    found = {one["name"]: one for one in table["rows"] if one["result"] is not None}
    mean = table["noise"]["validation_loss"]["mean"]
    rows = []
    for name, one in found.items():
        other, loss = one["against"], one["result"]["validation_loss"]
        peer = None if other is None else mean if other == "base" else found[other]["result"]["validation_loss"]
        rows.append(row(f"validation/{name}", loss, "loss", goal=None, better="lower", peer=peer))
    for name, one in found.items():
        base = None if one["against"] is None else found["base"]["result"]["seconds_per_step"]
        rows.append(row(f"step_s/{name}", one["result"]["seconds_per_step"], "s", goal=None, better="lower", peer=base))
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer clips, steps and variants")
    parser.add_argument("--json", type=Path, default=None, help="write the rows to this file")
    parser.add_argument(
        "--keep", type=Path, default=None, help="work in this folder and leave sets, plan and page there"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if options.keep is None else options.keep
        folder.mkdir(parents=True, exist_ok=True)
        rows = measure(folder, QUICK if options.quick else FULL)
    show(rows)
    write(options.json, rows)


if __name__ == "__main__":
    main()
