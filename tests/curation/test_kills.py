"""SIGKILL at random moments: the driver, a worker's child, a Ray worker, or everything at once; the same command continues to the same bytes.

A chain is one output folder: the command is started, killed, started again, until it ends by itself. Moments and victims come from a seed. Work
that had to be done again is counted by the attempts that the workers write down: at most one unit per worker and kill.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from curation.status_view import read_status
from encoders.registry import fetch

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
RUN_SECONDS = 500
BEGINS = {
    "analyze": "commits/analyze",
    "match": "tables/clips.parquet",
    "decide": "tables/pairs.parquet",
    "caption": "commits/caption",
    "encode": "cache/latents",
    "pack": "commits/pack",
    "report": "tables/outcomes.parquet",
}
"""Phase to what is there from its beginning on."""
ORDER = tuple(BEGINS)
PROGRAM = (sys.executable, "-P", "-c", "from curation.cli import main; raise SystemExit(main())")
_LONGEST_DELAY_S = {"driver": 1, "everything": 1, "child": 4, "worker": 4}
"""Pack is over sooner, so its kills come at once."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: in which phase, how long after its beginning, whom."""

    phase: str
    delay_s: float
    victim: str


@dataclass
class Chain:
    """What happened on one output folder."""

    command: list[str]
    output: Path
    kills: list[Kill] = field(default_factory=list)
    starts: int = 0
    attempts: int = 0

    def run(self, plan: list[Kill]) -> None:
        """Start the command again and again, killing as planned, until it has ended by itself."""
        left = list(plan)
        while True:
            self.starts += 1
            process = subprocess.Popen(
                self.command,
                env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                ended = self._disturb(process, left)
                said, _ = process.communicate(timeout=RUN_SECONDS)
            finally:
                _kill_all(process)
            assert not ended or process.returncode == 0, said
            self.attempts += sum(path.stat().st_size for path in self.output.glob(".tmp-attempts/*/*"))
            if ended:
                self.attempts += _attempts_of_the_last_run(self.output)
                return
            state = read_status(self.output)["state"]
            assert state in ("killed", "done"), state
            if state == "done":  # killed while it was ending
                self.attempts += _attempts_of_the_last_run(self.output)

    def _disturb(self, process: subprocess.Popen[str], left: list[Kill]) -> bool:
        """Kill as planned; returns whether the command is left to end by itself."""
        while left:
            kill = left[0]
            while not (self.output / BEGINS[kill.phase]).exists():
                if process.poll() is not None:
                    return True
                time.sleep(0.02)
            time.sleep(kill.delay_s)
            if process.poll() is not None:
                return True
            while not (victims := _victims(process, kill.victim)):
                if process.poll() is not None:
                    return True
                time.sleep(0.1)
            left.pop(0)
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
            self.kills.append(kill)
            if kill.victim in ("driver", "everything"):
                return False
        return True


def _victims(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    try:
        driver = psutil.Process(process.pid)
        below = driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    if name == "driver":
        return [driver]
    if name == "everything":
        return [driver, *below]
    word = "curation.child" if name == "child" else "ray::_StageWorker"
    return [one for one in below if any(word in part for part in _words(one))][:1]


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _kill_all(process: subprocess.Popen[str]) -> None:
    """What a failed test must not leave behind."""
    if process.poll() is None:
        for victim in _victims(process, "everything"):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        process.communicate()


def _attempts_of_the_last_run(output: Path) -> int:
    """The run that ended by itself has removed its counts and kept them in its timings."""
    from curation.timings import TIMINGS
    from schemas.tables import read_table

    rows = read_table(output / "timings.parquet", TIMINGS).to_pylist()
    last = max(row["run"] for row in rows)
    return sum(row["attempts"] for row in rows if row["run"] == last)


def _command(source: Path, output: Path) -> list[str]:
    settings = [f"output={output}", f"sources={json.dumps([str(source)])}", "pack.target_shard_samples=2"]
    settings += [f"ray.num_cpus={WORKERS}", "ray.start_seconds=300", "sandbox.attempts=10"]
    overrides = [word for setting in settings for word in ("--set", setting)]
    config = ROOT / "configs" / "curate_demo.yaml"
    return [sys.executable, str(ROOT / "curation" / "run.py"), "--config", str(config), *overrides]


def _digests(output: Path) -> dict[str, str]:
    files = [path for folder in ("tables", "sets") for path in sorted((output / folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, media_cases: ModuleType) -> Path:
    """One clip of a film, two photographs, a file that is no video."""
    folder = tmp_path_factory.mktemp("sources")
    media_cases.trimmed(fetch("media.bigbuckbunny"), folder / "bunny.mp4", seconds=4)
    shutil.copyfile(fetch("media.chelsea"), folder / "chelsea.png")
    shutil.copyfile(fetch("media.china"), folder / "china.jpg")
    (folder / "no video.mp4").write_bytes(b"this is text\n" * 99)
    return folder


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    chain = Chain(_command(source, output), output)
    chain.run([])
    yield chain


def _temporaries(output: Path) -> list[Path]:
    return [path for path in output.rglob(".tmp-*") if path.name != ".tmp-attempts"]


def _check(chain: Chain, undisturbed: Chain) -> None:
    assert _digests(chain.output) == _digests(undisturbed.output)
    if left := _temporaries(chain.output):
        assert len(left) <= len([kill for kill in chain.kills if kill.victim == "worker"]), left
        chain.run([])  # a Ray worker that was killed leaves its workplace, and the next command removes it
    assert not _temporaries(chain.output) and _digests(chain.output) == _digests(undisturbed.output)
    assert read_status(chain.output)["state"] == "done"
    redone = chain.attempts - undisturbed.attempts
    text = ", ".join(f"{kill.victim} {kill.delay_s:.2f} s into {kill.phase}" for kill in chain.kills)
    print(f"{len(chain.kills)} kills ({text}), {chain.starts} starts, {redone} units done again")
    assert 0 <= redone <= WORKERS * len(chain.kills), "less than the undisturbed run means work that was never counted"


@pytest.mark.timeout(1500)
def test_four_kills_change_nothing(source: Path, undisturbed: Chain, tmp_path: Path) -> None:
    moments = random.Random(7)
    plan = [Kill("analyze", moments.uniform(0, 2), "child"), Kill("caption", moments.uniform(0, 0.5), "driver")]
    plan += [Kill("encode", moments.uniform(0, 0.5), "worker"), Kill("encode", moments.uniform(0, 0.5), "everything")]
    chain = Chain(_command(source, tmp_path / "out"), tmp_path / "out")
    chain.run(plan)
    assert {kill.victim for kill in chain.kills} >= {"driver", "everything"}
    _check(chain, undisturbed)


def _plan(seed: int) -> list[Kill]:
    """Nine kills in the order of the phases: two end the command, in any phase; the others hit a child or a Ray worker, one of them in pack."""
    moments = random.Random(seed)
    inner = [(moments.choice(("analyze", "caption", "encode")), moments.choice(("child", "worker"))) for _ in range(6)]
    inner.append(("pack", moments.choice(("child", "worker"))))
    last = [(moments.choice(ORDER), victim) for victim in ("driver", "everything")]
    plan = [
        Kill(phase, moments.uniform(0, _LONGEST_DELAY_S[victim] if phase != "pack" else 0.2), victim)
        for phase, victim in inner + last
    ]
    return sorted(plan, key=lambda kill: ORDER.index(kill.phase))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(3))
def test_chains_of_random_kills_change_nothing(
    seed: int, source: Path, undisturbed: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = Chain(_command(source, tmp_path / "out"), tmp_path / "out")
    chain.run(_plan(seed))
    assert len(chain.kills) >= 7, "with three seeds, more than twenty kills"
    with capsys.disabled():
        print(f"\nseed {seed}: ", end="")
        _check(chain, undisturbed)


def test_the_status_says_killed_and_done(undisturbed: Chain) -> None:
    said = subprocess.run(
        [*PROGRAM, "status", str(undisturbed.output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert said.returncode == 0, said.stderr
    assert re.search(r"^no command runs here: the last one .* ended well", said.stdout)
    assert re.search(r"analyze +4 of 4 units in .*, 3 clips, .* video hours an hour", said.stdout)
    assert re.search(r"stage latents: .* workers, busy \d+ %", said.stdout)
