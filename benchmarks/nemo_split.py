"""The peer of analyze.py: NeMo Curator's own split pipeline on a folder of videos, as its users run it, in a process of its own.

    python benchmarks/nemo_split.py VIDEOS OUTPUT [--ffmpeg FOLDER]

Reader, clips of 5 s, transcode with libopenh264 on the CPU, motion vectors and motion filter, writer, on its Ray Data executor with eight claimed
CPUs, since with two real ones that executor waits for ever. Needs `ffmpeg` with libopenh264 first on PATH, and `ffprobe`. Price: eight workers share
the cores that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["run_split"]

_CLAIMED_CPUS = 8


def run_split(videos: Path, output: Path) -> dict[str, Any]:
    """Seconds of the pipeline, Ray's start included, and how many clips it wrote."""
    start = time.perf_counter()
    import ray
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline
    from nemo_curator.stages.video.clipping.clip_extraction_stages import (
        ClipTranscodingStage,
        FixedStrideExtractorStage,
    )
    from nemo_curator.stages.video.filtering.motion_filter import MotionFilterStage, MotionVectorDecodeStage
    from nemo_curator.stages.video.io.clip_writer import ClipWriterStage
    from nemo_curator.stages.video.io.video_reader import VideoReader

    ray.init(address="local", num_cpus=_CLAIMED_CPUS, log_to_driver=False)
    stages = [
        VideoReader(input_video_path=str(videos)),
        FixedStrideExtractorStage(clip_len_s=5.0, clip_stride_s=5.0, min_clip_length_s=2.0, limit_clips=0),
        ClipTranscodingStage(encoder="libopenh264", num_cpus_per_worker=1.0),
        MotionVectorDecodeStage(num_cpus_per_worker=1.0),
        MotionFilterStage(),
        ClipWriterStage(
            output_path=str(output),
            input_path=str(videos),
            upload_clips=True,
            dry_run=False,
            generate_embeddings=False,
            generate_previews=False,
            generate_captions=False,
        ),
    ]
    Pipeline(name="split", stages=stages).run(RayDataExecutor())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "clips": len([*output.glob("clips/*.mp4"), *output.glob("filtered_clips/*.mp4")])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--ffmpeg", type=Path, help="folder with `ffmpeg`, put first on PATH")
    arguments = parser.parse_args()
    if arguments.ffmpeg is not None:
        os.environ["PATH"] = f"{arguments.ffmpeg}{os.pathsep}{os.environ['PATH']}"
    result = run_split(arguments.videos.resolve(), arguments.output.resolve())
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
