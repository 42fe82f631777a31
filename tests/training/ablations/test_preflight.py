"""`--dry-run`: the questions, and everything that would end a run, at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.cli import main

VARIANTS = [
    {"name": "less", "group": "g", "question": "And with less?", "data": "half"},
    {"name": "tuned", "group": "g", "question": "And tuned?", "data": "sft"},
    {"name": "later", "group": "Steps", "question": "And some steps more?", "after": "base"},
]
DATA = {"half": {"share": 0.5}, "sft": {"admission": "sft"}}


@pytest.fixture
def dry_run(
    ablation_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Exit code, standard output and error of `ablate --dry-run`."""

    def run(plan: Path, samples: Path, *extra: object, **changes: Any) -> tuple[int, str, str]:
        file = ablation_file(**{"variants": VARIANTS, "data": DATA, **changes})
        paths = [
            "--config",
            file,
            "--plan",
            plan,
            "--samples",
            samples,
            "--output",
            tmp_path / "out",
            "--dry-run",
            *extra,
        ]
        code = main(["ablate", *map(str, paths)])
        said = capsys.readouterr()
        assert not (tmp_path / "out").exists()
        return code, said.out, said.err

    return run


def test_a_sound_set_lists_its_questions(dry_run: Callable[..., Any], tiny_plan: Any, tiny_set: Path) -> None:
    code, out, err = dry_run(tiny_plan.folder, tiny_set, "--only", "later")
    assert (code, out, err) == (0, "base: 5 steps, 2 seeds\nlater (Steps, against base): And some steps more?\n", "")


def test_all_problems_are_listed_at_once(
    dry_run: Callable[..., Any], tiny_plan: Any, tiny_set: Path, tmp_path: Path, small_config: Callable[..., Any]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_set, broken)
    (broken / "shard-000003.tar").write_bytes(b"cut")
    base = small_config()
    base["model"]["text_width"] += 1
    code, _, err = dry_run(tiny_plan.folder, broken, "--steps", 100, "--validation", tiny_set, base=base)
    assert code == 1 and "5 problems before any run:" in err
    for words in (
        "100 steps are asked for, the plan",
        "40 of 40 clips of --validation",
        "base, less, tuned, later: model.text_width is",
        "shard-000003.tar has 3 bytes, the plan expects",
        "data sft: no clip of its shards is admitted at 'sft', levels there are: 144p (40 clips)",
    ):
        assert words in err, words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("plan", "nope is not a plan folder"),
        ("set", "nope"),
        ("shard", "shard-000002.tar is missing; the plan reads it"),
        ("other", "the plan was built for other samples"),
        ("held", "held"),
        ("hand", "data half: "),
        ("share", "has 6 shards: 0.99 of them cannot be taken"),
    ],
)
def test_each_thing_that_is_not_there_is_said(
    change: str,
    message: str,
    dry_run: Callable[..., Any],
    tiny_plan: Any,
    tiny_set: Path,
    tmp_path: Path,
    make_set: Callable[..., Path],
    clip_type: Callable[..., Any],
) -> None:
    plan, samples, extra, changes = tiny_plan.folder, tiny_set, ["--only", "later"], {}
    if change == "plan":
        plan = tmp_path / "nope"
    elif change == "set":
        samples = tmp_path / "nope"
    elif change == "shard":
        samples = tmp_path / "copy"
        shutil.copytree(tiny_set, samples)
        (samples / "shard-000002.tar").unlink()
    elif change == "other":
        samples = make_set(tmp_path / "other", [clip_type(33)], seed=3)
    elif change == "held":
        extra += ["--validation", str(tmp_path / "held")]
    elif change == "hand":
        extra = ["--only", "less", "--data", f"half={tmp_path / 'p'},{tiny_set}"]
    else:
        extra, changes = ["--only", "less"], {"data": {**DATA, "half": {"share": 0.99}}}
    code, _, err = dry_run(plan, samples, *extra, **changes)
    assert code == 1 and message in err and "Traceback" not in err
