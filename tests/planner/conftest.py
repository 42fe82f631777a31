"""Synthetic set folders: set.json and samples.parquet as `reelyard-curate` packs them; the tars only where a test needs their sizes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from schemas.buckets import Bucket, latent_frames
from schemas.ids import clip_id
from schemas.shards import SetInfo, ShardInfo, samples_path, shard_name, write_set_info
from schemas.tables import SAMPLES, table_from_rows, write_table

END_OF_ARCHIVE = 1024


class SetWriter:
    """Writes a set from a list of shards, each a list of (bucket, source number)."""

    def __call__(
        self,
        folder: Path,
        shards: Sequence[Sequence[tuple[str, int]]],
        *,
        name: str = "64p",
        seed: int = 0,
        tars: bool = False,
        admissions: Callable[[int], list[str]] = lambda index: ["144p"],
        facts: Callable[[int], dict[str, Any]] = lambda index: {},
    ) -> Path:
        """`facts` gives further columns of the clip with that number: its domain, say."""
        rng = np.random.default_rng(seed)
        rows: list[dict[str, Any]] = []
        infos = []
        for shard, clips in enumerate(shards):
            offset = 0
            for ordinal, (bucket, source) in enumerate(clips):
                rows.append(self._row(name, shard, ordinal, offset, Bucket.parse(bucket), source, len(rows), rng))
                rows[-1]["admissions"] = admissions(len(rows) - 1)
                rows[-1] |= facts(len(rows) - 1)
                offset += rows[-1]["length"]
            size = offset + END_OF_ARCHIVE
            infos.append(ShardInfo(name=shard_name(shard), size_bytes=size, sha256="0" * 64, num_samples=len(clips)))
            if tars:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / shard_name(shard)).write_bytes(bytes(size))
        write_table(samples_path(folder), table_from_rows(SAMPLES, rows), SAMPLES)
        write_set_info(
            folder,
            SetInfo(
                set_name=name,
                fps=24.0,
                codec="dct",
                codec_fingerprint="c" * 16,
                latent_channels=16,
                text_encoder="minilm",
                text_encoder_fingerprint="t" * 16,
                text_width=384,
                teacher_by_branch={},
                teacher_width=None,
                seed=0,
                shards=tuple(infos),
            ),
        )
        return folder

    @staticmethod
    def _row(
        name: str,
        shard: int,
        ordinal: int,
        offset: int,
        bucket: Bucket,
        source: int,
        index: int,
        rng: np.random.Generator,
    ) -> dict[str, Any]:
        content = f"{source:064x}"
        frames, rows, columns = latent_frames(bucket.frames), bucket.height // 8, bucket.width // 8
        payload = 2 * 16 * frames * rows * columns + 768 * int(rng.integers(4, 40))
        length = 512 * (2 + -(-payload // 512)) + 512 * 4
        return {
            "clip_id": clip_id(content, index, index + 1),
            "set": name,
            "shard_index": shard,
            "ordinal": ordinal,
            "offset": offset,
            "length": length,
            "members": [{"name": "latent.npy", "offset": offset + 512, "length": payload, "crc32": index}],
            "latent_shape": [frames, 16, rows, columns],
            "frames": bucket.frames,
            "height": bucket.height,
            "width": bucket.width,
            "text_tokens_long": 20,
            "text_tokens_short": 8,
            "text_tokens_first": 8,
            "branch": "image_real" if bucket.frames == 1 else "video_real",
            "domain": "",
            "subject": "",
            "style": "",
            "source": content,
            "start_us": index,
            "admissions": ["144p"],
            "has_teacher": False,
        }


@pytest.fixture(scope="session")
def write_set() -> SetWriter:
    return SetWriter()


MIX = {"1x64x112": 0.35, "33x64x112": 0.25, "65x64x112": 0.15, "121x64x112": 0.1, "33x112x64": 0.1, "1x112x64": 0.05}


def mixed_shards(
    num_shards: int, clips: int, *, seed: int = 0, clips_per_source: int = 3
) -> list[list[tuple[str, int]]]:
    """Shards whose bucket mixes differ (Dirichlet), with several clips of each source."""
    rng = np.random.default_rng(seed)
    names, shares = list(MIX), np.array(list(MIX.values()))
    shards = []
    for shard in range(num_shards):
        mix = rng.dirichlet(shares * 6)
        buckets = rng.choice(names, size=clips, p=mix)
        shards.append(
            [(str(bucket), (shard * clips + index) // clips_per_source) for index, bucket in enumerate(buckets)]
        )
    return shards


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., list[list[tuple[str, int]]]]:
    return mixed_shards


def _module(name: str) -> ModuleType:
    """A module beside this file, which is no package member in importlib mode."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def hand_plans() -> ModuleType:
    """tests/planner/hand_plans.py: `hand_plans.write_plan(folder, lanes, seconds)` writes a plan whose rows the test gives."""
    return _module("hand_plans")


@pytest.fixture(scope="session")
def brute_force() -> ModuleType:
    """tests/planner/brute_force.py: `brute_force.replay(plan, folders)` runs a plan clip by clip and asserts what it promises."""
    return _module("brute_force")


@pytest.fixture(scope="session")
def check(brute_force: ModuleType) -> Callable[..., Any]:
    """`check(folders, plan)`: replayed, its ledger, any world size, and the verifier; gives the replay."""
    function: Callable[..., Any] = brute_force.check_plan
    return function


@pytest.fixture(scope="session")
def small_plans() -> ModuleType:
    """tests/planner/small_plans.py: `small_plans.small_config(lanes=3)`."""
    return _module("small_plans")


@pytest.fixture(scope="session")
def planned(small_plans: ModuleType) -> Callable[..., Any]:
    """`planned([set], plan, lanes=3)`: build and write; gives (run, meta)."""
    function: Callable[..., Any] = small_plans.write_small_plan
    return function
