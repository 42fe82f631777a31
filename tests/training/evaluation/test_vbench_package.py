"""The real vbench package on real videos, in an environment of its own: the one dimension that needs no weights."""

from __future__ import annotations

import json
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from training.cli import main

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def vbench_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with vbench 0.1.5 and decord, and torch, torchvision and OpenCV of this environment."""
    folder = tmp_path_factory.mktemp("vbench") / "env"
    venv.create(folder, with_pip=False)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "outer.pth").write_text("\n".join(site.getsitepackages()))
    wanted = ["vbench==0.1.5", "decord==0.6.0"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"vbench cannot be installed from the package index here: {done.stderr.strip().splitlines()[-1]}")
    return folder / "bin" / "python"


def test_the_package_scores_what_the_sampler_made(
    vbench_python: Path, text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "list.txt"
    prompts.write_text("In a still frame, a stop sign\na toilet, frozen in time\na person\n")
    arguments = [
        "--run",
        text_run,
        "--output",
        tmp_path / "out",
        "--prompts",
        prompts,
        "--vbench-python",
        vbench_python,
        "--device",
        "cpu",
    ]
    sizes = ["--vbench-cache", tmp_path / "cache", "--frames", 5, "--height", 32, "--width", 48, "--set", "num_steps=1"]
    command = ["evaluate", "vbench", *map(str, [*arguments, *sizes])]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err.strip().splitlines()[-1] == "1 of 2 dimensions scored by vbench 0.1.5"
    table = json.loads((tmp_path / "out" / "scores" / "table.json").read_text())
    rows = {row["dimension"]: row for row in table["dimensions"]}
    assert set(rows) == {"temporal_flickering", "object_class"}, "looked up in the package's own list"
    assert rows["temporal_flickering"]["num_videos"] == 10 and 0.2 < rows["temporal_flickering"]["score"] < 1
    assert "weights are not there: grit_model" in rows["object_class"]["reason"] and table["total"] is None
    assert main(command) == 0
    again = capsys.readouterr()
    assert again.out == said.out and "scoring" not in again.err, "nothing is made or scored twice"

    assert main([*command, "--prompts", "package", "--dimensions", "temporal_flickering", "--part", "1/400"]) == 0
    assert "0 videos made, 1 were there" in capsys.readouterr().err, (
        "the first of the package's own list is one of ours"
    )


def test_a_package_that_fails_is_a_row_with_its_reason(
    vbench_python: Path, text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, cache = tmp_path / "list.txt", tmp_path / "cache"
    prompts.write_text("a person\n")
    (cache / "grit_model").mkdir(parents=True)
    (cache / "grit_model" / "grit_b_densecap_objectdet.pth").write_bytes(b"no weights")
    arguments = [
        "--run",
        text_run,
        "--output",
        tmp_path / "out",
        "--prompts",
        prompts,
        "--vbench-python",
        vbench_python,
        "--device",
        "cpu",
    ]
    sizes = ["--vbench-cache", cache, "--frames", 5, "--height", 32, "--width", 48, "--set", "num_steps=1"]
    assert main(["evaluate", "vbench", *map(str, [*arguments, *sizes])]) == 1
    said = capsys.readouterr()
    assert "object_class" in said.out and "the package failed (" in said.out and "see object_class.log" in said.out
    assert said.err.strip().splitlines()[-1] == "0 of 1 dimensions scored by vbench 0.1.5"
