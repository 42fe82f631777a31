"""`ray job submit` on a head with token authentication: the command of the README, a call without the token, a relative output."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from encoders.registry import default_cache_dir, fetch
from tests.token_head import TokenHead, token_head


@pytest.fixture(scope="module")
def head() -> Iterator[TokenHead]:
    with token_head() as running:
        yield running


def submit(head: TokenHead, *overrides: str, token: bool = True) -> subprocess.CompletedProcess[str]:
    """The README's command."""
    changes = [word for override in overrides for word in ("--set", override)]
    command = ["python", "curation/run.py", "--config", "configs/curate_demo.yaml", *changes]
    return head.job("submit", "--working-dir", ".", "--", *command, token=token)


@pytest.mark.timeout(300)
def test_the_documented_job_succeeds(head: TokenHead, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "china.jpg").write_bytes(fetch("media.china").read_bytes())
    output = tmp_path / "out"
    done = submit(head, f"output={output}", f"sources=[{source}]", f"models.cache_dir={default_cache_dir()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (output / "sets" / "64p" / "set.json").is_file()
    assert "Traceback" not in done.stdout


def test_a_relative_output_is_refused_in_words(head: TokenHead) -> None:
    done = submit(head, "output=somewhere")
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert "output: 'somewhere' is a relative path" in text and "temporary copy" in text and "--set output=/" in text
    assert "Traceback" not in text


def test_a_call_without_the_token_is_refused(head: TokenHead, tmp_path: Path) -> None:
    done = submit(head, f"output={tmp_path}", token=False)
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr or "authent" in (done.stdout + done.stderr).lower()
    assert not list(tmp_path.iterdir())
