"""Wrong configurations, one row each, and the message that each gives on the command line: exit code, one error, no traceback.

A row is the changes to a good configuration (dotted key to value; `gone` takes the key out), the exit code and what the message says. The rows
cover every section; the message must name the key and the value, and say what is wanted instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.cli import main

GONE = object()

STAGE: dict[str, Any] = {
    "number": 1,
    "name": "first",
    "init_from": None,
    "text_encoder": "minilm",
    "parts": [
        {
            "name": "main",
            "admission": "144p",
            "frames": {"tiny": [1, 33, 65]},
            "batch_clips": {"1x32x48": 3, "1x48x32": 3, "33x32x48": 2, "65x32x48": 1},
            "lanes": 2,
            "micro_per_step": 2,
        }
    ],
}
PART: dict[str, Any] = STAGE["parts"][0]
SHORT = {"1x32x48": 3, "1x48x32": 3, "33x32x48": 2}
SAYS_WHAT = re.compile(
    r"\b(give|set|add|take|build|pack|name|correct|end it|leave|expected|must|did you mean|known keys)\b"
)
"""Words of what is wanted, one of which every message has."""


def stage(**changes: Any) -> dict[str, Any]:
    return {**STAGE, **changes}


def part(**changes: Any) -> dict[str, Any]:
    return stage(parts=[{**PART, **changes}])


WRONG: list[tuple[dict[str, Any], int, str]] = [
    # the file as a whole
    ({"optimiser": {"lr": 1}}, 2, r"train.yaml: optimiser: unknown key; did you mean 'optimizer'\?"),
    ({"learning": 1}, 2, r"learning: unknown key; known keys here: activation_checkpointing, "),
    ({"model": GONE}, 2, r"model: missing; this key has no default, add it to the file or use --set model=\.\.\."),
    ({"seed": "seven"}, 2, r"seed: give a whole number \(got 'seven'\)"),
    ({"seed": 1.5}, 2, r"seed: give a whole number \(got 1.5\)"),
    ({"steps": 0}, 2, r"steps: give a number above 0 \(got 0\)"),
    ({"steps": 11}, 1, r"steps is 11, the plan .* ends with step 9; set steps to at most that many"),
    ({"precision": "fp16"}, 2, r"precision: give 'auto', 'bf16' or 'fp32' \(got 'fp16'\)"),
    ({"device": "gpu"}, 2, r"device: give 'auto', 'cpu' or 'cuda' \(got 'gpu'\)"),
    ({"watchdog.seconds": 0}, 2, r"watchdog.seconds: give a number above 0 \(got 0\)"),
    ({"watchdog.minutes": 5}, 2, r"watchdog.minutes: unknown key; known keys here: first_step_seconds, seconds"),
    ({"on_nonfinite": "ignore"}, 2, r"on_nonfinite: give 'stop' or 'skip' \(got 'ignore'\)"),
    ({"loader": {"reader_threads": 0}}, 2, r"loader.reader_threads: give a number of at least 1 \(got 0\)"),
    ({"checkpoint.every_steps": 0}, 2, r"checkpoint.every_steps: give a number above 0"),
    ({"checkpoint.keep_every": 4}, 2, r"checkpoint.keep_every: unknown key; did you mean 'keep_every_steps'"),
    ({"ema_decays": [1.0]}, 2, r"ema_decays.0: give a number below 1 \(got 1.0\)"),
    (
        {"ema_decays": []},
        2,
        r"ema_decays is empty; give one average at least, it is what sampling and the next stage take",
    ),
    ({"ema_decays": [0.9, 0.9]}, 2, r"ema_decays names 0.9 twice; give each average once"),
    # the network
    ({"model.width": 40}, 2, r"model: width 40 must equal heads 2 x head_width 16"),
    ({"model.rope_axes": [4, 6, 5]}, 2, r"model: rope_axes \(4, 6, 5\) must add up to head_width 16"),
    ({"model.rope_axes": [5, 5, 6]}, 2, r"model: rope_axes \(5, 5, 6\) must be even"),
    ({"model.in_channels": 32}, 2, r"model.in_channels 32 must be 2 x model.out_channels 16 \+ 1"),
    ({"model.depth": 12}, 2, r"model.depth: unknown key"),
    ({"model.dual_blocks": -1}, 2, r"model.dual_blocks: give a number of at least 0 \(got -1\)"),
    ({"model.heads": 0}, 2, r"model.heads: give a number above 0 \(got 0\)"),
    # widths against the set
    (
        {"model.text_width": 384},
        2,
        r"model.text_width is 384, the set 'tiny' has 16 \(set.json\); set model.text_width=16",
    ),
    (
        {"model.out_channels": 4, "model.in_channels": 9},
        2,
        r"model.out_channels is 4, the set 'tiny' has 16 \(set.json\); set model.out_channels=16",
    ),
    # optimizer, flow, text
    ({"optimizer.lr": 0}, 2, r"optimizer.lr: give a number above 0 \(got 0\)"),
    ({"optimizer.learning_rate": 1e-4}, 2, r"optimizer.learning_rate: unknown key; known keys here: betas, "),
    ({"optimizer.betas": [0.9]}, 2, r"optimizer.betas.1: missing"),
    ({"optimizer.betas": [0.9, 1.5]}, 2, r"optimizer.betas.1: give a number .*below 1"),
    ({"optimizer.betas": [0.9, 1.0]}, 2, r"optimizer.betas.1: give a number .*below 1"),
    ({"optimizer.warmup_steps": -1}, 2, r"optimizer.warmup_steps: give a number of at least 0"),
    ({"optimizer.decay_steps": 2}, 2, r"optimizer: decay_steps 2 must be above warmup_steps 3"),
    ({"optimizer.decay": "step"}, 2, r"optimizer.decay: give 'cosine' or 'linear' \(got 'step'\)"),
    ({"optimizer.clip_norm": 0}, 2, r"optimizer.clip_norm: give a number above 0"),
    ({"optimizer.name": "lion"}, 2, r"optimizer.name: give 'adamw', 'adamw8bit' or 'muon' \(got 'lion'\)"),
    ({"optimizer.momentum": 1.0}, 2, r"optimizer.momentum: give a number .*below 1"),
    ({"optimizer.steps_from": "stage"}, 2, r"optimizer.steps_from: give 'plan' or 'start' \(got 'stage'\)"),
    # layout of ranks
    (
        {"parallel.replicate": 2},
        2,
        r"parallel.replicate is 2, which does not divide the run's 1 ranks; set it to one of 1,",
    ),
    (
        {"parallel.shard": 2},
        2,
        r"parallel.replicate 1 x parallel.shard 2 is 2 ranks, but the run has 1; set parallel.shard=1",
    ),
    ({"parallel.sync": "step"}, 2, r"parallel.sync is 'step', but the plan was built for 'micro'"),
    ({"activation_checkpointing": -1}, 2, r"activation_checkpointing.*give"),
    ({"flow.time_density": "lognormal"}, 2, r"flow.time_density: give 'uniform' or 'logit_normal'"),
    ({"flow.shift": 0}, 2, r"flow.shift: give a number above 0"),
    ({"flow.logit_std": 0}, 2, r"flow.logit_std: give a number above 0"),
    ({"text.long_share": 0.9}, 2, r"text: long_share, short_share and first_share add up to 1.4, expected 1"),
    ({"text.dropout_probability": 1.1}, 2, r"text.dropout_probability: give a number .*of at most 1"),
    # TREAD
    (
        {"tread": {"start_block": 2, "end_block": 4, "drop_ratio": 0.5}},
        2,
        r"tread: route: blocks 2 to 4 cross from the encoder \(0 to 3\) into the decoder; end it at 3, or start it at 4",
    ),
    (
        {"tread": {"start_block": 3, "end_block": 1, "drop_ratio": 0.5}},
        2,
        r"tread: route: blocks 3 to 1 \(inclusive\), expected 0 <= start <= end <= 4",
    ),
    (
        {"tread": {"start_block": 1, "end_block": 2, "drop_ratio": 1.0}},
        2,
        r"tread.drop_ratio: give a number .*below 1",
    ),
    ({"tread": {"start_block": 1, "drop_ratio": 0.5}}, 2, r"tread.end_block: missing; this key has no default"),
    ({"tread": True}, 2, r"tread: expected a section with keys of start_block, end_block, drop_ratio.* \(got True\)"),
    # REPA
    ({"repa.tap_block": 4}, 2, r"repa.tap_block 4 must be an encoder block, 0 to 3"),
    ({"repa.weight": -0.5}, 2, r"repa.weight: give a number of at least 0"),
    ({"repa": {"weight": 0.5}}, 2, r"repa.tap_block: missing"),
    ({"repa.source": "shards"}, 2, r"repa.source: give 'stored' or 'online' \(got 'shards'\)"),
    (
        {"repa.teacher_by_branch": {"video": "random"}},
        2,
        r"repa: teacher_by_branch names branch 'video', expected one of",
    ),
    (
        {"repa.teacher_by_branch": {"video_real": None}},
        2,
        r"repa: teacher_by_branch gives no branch a teacher; name one",
    ),
    ({"repa.source": "online"}, 2, r"repa.source is online, and teacher 'random' is unknown; expected one of"),
    # image-to-video
    ({"i2v_probability": 0.1}, 2, r"i2v_probability: unknown key"),
    ({"i2v.probability": 1.5}, 2, r"i2v.probability: give a number .*of at most 1 \(got 1.5\)"),
    ({"i2v": {"image_tokens": True}}, 2, r"i2v: image_tokens is set, but probability is 0"),
    ({"i2v.image_tokens": True}, 2, r"i2v.image_tokens is true, but model.image_width is null"),
    (
        {"i2v.blur": {"probability": 0.5, "factor_at_noise": 0}},
        2,
        r"i2v.blur.factor_at_noise: give a number above 0",
    ),
    # what is measured on the way
    ({"evaluation": {}}, 2, r"evaluation.prompts: missing"),
    ({"evaluation": {"prompts": [""]}}, 2, r"evaluation: one of the prompts is empty; leave it out"),
    ({"validation": {"num_timesteps": 0}}, 2, r"validation.num_timesteps: give a number above 0"),
    ({"logging": {"wandb": {"project": ""}}}, 2, r"logging.wandb.project: "),
    ({"logging": {"wandb": {"project": "p", "mode": "shared"}}}, 2, r"logging.wandb.mode: give 'online' or 'offline'"),
    ({"logging": {"tensor_board": True}}, 2, r"logging.tensor_board: unknown key; did you mean 'tensorboard'"),
    ({"validation": {"weights": ["best"]}}, 2, r"validation.weights.0: give 'ema' or 'trained'"),
    # the stage
    (
        {"stage": stage(paper=["optimizer.rate"])},
        2,
        r"stage.paper names 'optimizer.rate', which is no key of this file; correct it",
    ),
    ({"stage": stage(new=["dit.text_embed"])}, 2, r"stage: new is \['dit.text_embed'\], but init_from is null"),
    ({"stage": stage(init_from="first")}, 2, r"stage: init_from is 'first', the stage itself"),
    (
        {"stage": stage(init_from="zero", new=["a"], reset=["a"])},
        2,
        r"stage: 'a' is in new and in reset; leave it in one of them",
    ),
    (
        {"stage": stage(init_from="zero", new=["dit..cross"])},
        2,
        r"stage.new.0: give a pattern of module names: .* for example dit.single_blocks.\*.cross \(got 'dit..cross'\)",
    ),
    ({"stage": stage(part="bridge")}, 2, r"stage: part is 'bridge', expected one of \['main'\] \(stage.parts\)"),
    ({"stage": stage(parts=[])}, 2, r"stage.parts: give at least 1 of them \(got \[\]\)"),
    (
        {"stage": stage(parts=[PART, PART])},
        2,
        r"stage: parts are named \['main', 'main'\]; give each a name of its own",
    ),
    ({"stage": stage(init_weights="average")}, 2, r"stage.init_weights: give 'ema' or 'trained'"),
    (
        {"stage": part(frames={"tiny": [1, 30]})},
        2,
        r"frames.tiny is \[1, 30\], expected one or more of \[1, 33, 65, 121\]",
    ),
    ({"stage": part(batch_clips={"121x32x48": 1})}, 2, r"batch_clips.121x32x48: no set is used at 121 frames"),
    ({"stage": part(batch_clips={"1x32x48": 1})}, 2, r"batch_clips has no bucket of 33 frames, which frames names"),
    ({"stage": part(batch_clips={"one": 1})}, 2, r"bucket 'one' is not of the form FRAMESxHEIGHTxWIDTH"),
    ({"stage": part(epochs=None)}, 2, r"epochs is null and max_steps is null; give at least one"),
    (
        {"stage": part(admission="1080p")},
        2,
        r"stage.parts.0.admission: give '144p', '360p', '480p', '720p' or 'sft'",
    ),
    (
        {"stage": part(domain_weights={"people": 2})},
        2,
        r"stage.parts.0.domain_weights.people: give a number .*of at most 1",
    ),
    # the stage against the data and the source
    (
        {"stage": stage(init_from="zero")},
        2,
        r"first starts from zero; give the --output of that run with --init-from FOLDER",
    ),
    (
        {"stage": stage(init_from="weights")},
        2,
        r"first starts from imported weights; give their folder with --init-from",
    ),
    (
        {"stage": stage(text_encoder="t5gemma2")},
        2,
        r"stage.text_encoder is 't5gemma2', the set 'tiny' has text of 'minilm'",
    ),
    (
        {"stage": STAGE, "repa.teacher_by_branch": {"video_real": "vjepa2"}},
        2,
        r"first, part main: repa.teacher_by_branch gives video_real the teacher 'vjepa2', the set 'tiny' has 'random' stored",
    ),
    (
        {"stage": STAGE, "i2v": {"probability": 0.1, "image_tokens": True}, "model.image_width": 1152},
        2,
        r"first, part main: i2v.image_tokens is true, but the set 'tiny' has none",
    ),
    ({"stage": part(frames={"144p": [1, 33, 65]})}, 1, r"sets: the stage has \['144p'\], the plan \['tiny'\]\n"),
    (
        {"stage": part(frames={"tiny": [1, 33]}, batch_clips=SHORT)},
        1,
        r"frames: the stage has {'tiny': \[1, 33\]}, the plan {'tiny': \[1, 33, 65\]}",
    ),
    (
        {"stage": part(frames={"tiny": [1, 33, 65], "144p": [1]})},
        1,
        r"sets: the stage has \['144p', 'tiny'\], the plan \['tiny'\]",
    ),
    ({"stage": part(lanes=4)}, 1, r"lanes: the stage has 4, the plan 2"),
    ({"stage": part(micro_per_step=1)}, 1, r"micro_per_step: the stage has 1, the plan 2"),
    ({"stage": part(epochs=2)}, 1, r"epochs: the stage has 2, the plan 1"),
    ({"stage": part(max_steps=5)}, 1, r"max_steps: the stage has 5, the plan None"),
    ({"stage": part(images_per_video=0.5)}, 1, r"images_per_video: the stage has 0.5, the plan None"),
    ({"stage": part(domain_column="subject")}, 1, r"domain_column: the stage has subject, the plan domain"),
    ({"stage": part(domain_weights={"people": 0.5})}, 1, r"domain_weights: the stage has {'people': 0.5}, the plan {}"),
    (
        {"stage": part(rules=[{"column": "branch", "one_of": ["video_real"]}])},
        1,
        r"rules: the stage has \[{.*'one_of': \['video_real'\]}\], the plan \[\]",
    ),
    ({"stage": part(rules=[{"column": "branch"}])}, 2, r"rule on 'branch': give at_least and/or at_most, or one_of"),
    (
        {"stage": part(lanes=4, epochs=2)},
        1,
        r"lanes: the stage has 4, the plan 2\n  epochs: the stage has 2, the plan 1\n",
    ),
    ({"stage": part(admission="360p")}, 1, r"admission: the stage has 360p, the plan 144p"),
    (
        {"stage": part(batch_clips={**PART["batch_clips"], "33x32x48": 4})},
        1,
        r"first, part main: the plan is not the stage's:\n  batch_clips.33x32x48: the stage has 4, the plan 2\nbuild it from the file",
    ),
    (
        {"stage": stage(train_only=["dit.nothing"])},
        2,
        r"stage.train_only: 'dit.nothing' meets no parameter of the network",
    ),
]


def written(path: Path, good: dict[str, Any], changes: dict[str, Any]) -> Path:
    """The good configuration with changes, as a file."""
    values = yaml.safe_load(yaml.safe_dump(good))
    for key, value in changes.items():
        node = values
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        if value is GONE:
            del node[last]
        else:
            node[last] = value
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(("changes", "code", "message"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_configuration_ends_with_one_message(
    changes: dict[str, Any],
    code: int,
    message: str,
    small_config: Callable[..., dict[str, Any]],
    run_arguments: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = run_arguments(tmp_path / "run")
    arguments[arguments.index("--config") + 1] = str(written(tmp_path / "train.yaml", small_config(), changes))
    assert main(["run", *arguments]) == code
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert said.count("error:") == 1 and "Traceback" not in said
    assert SAYS_WHAT.search(said) and "should" not in said, "the message says what is wanted, in our words"
    assert "metrics.jsonl" not in {path.name for path in tmp_path.rglob("*")}, "nothing was trained"


def test_several_mistakes_are_said_together(
    small_config: Callable[..., dict[str, Any]],
    run_arguments: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"optimizer.lr": -1, "flow.shift": 0, "text.dropout": 0.1, "seed": "x"}
    arguments = run_arguments(tmp_path / "run")
    arguments[arguments.index("--config") + 1] = str(written(tmp_path / "train.yaml", small_config(), changes))
    assert main(["run", *arguments]) == 2
    said = capsys.readouterr().err
    for key in ("optimizer.lr", "flow.shift", "text.dropout", "seed"):
        assert f"train.yaml: {key}: " in said


CONTINUED: list[tuple[dict[str, Any], list[str]]] = [
    ({"optimizer.lr": 0.5}, ["optimizer.lr: was 0.001, is 0.5"]),
    ({"seed": 8, "ema_decays": [0.9]}, ["seed: was 7, is 8", "ema_decays: was [0.99], is [0.9]"]),
    ({"tread": None}, ["tread: was '(not there)', is None", "tread.drop_ratio: was 0.5, is '(not there)'"]),
    ({"repa.weight": 0.25, "flow.shift": 3.0}, ["repa.weight: was 0.5, is 0.25", "flow.shift: was 1.0, is 3.0"]),
    ({"text.dropout_probability": 0.2}, ["text.dropout_probability: was 0.1, is 0.2"]),
    ({"model.single_blocks": 4}, ["model.single_blocks: was 3, is 4"]),
    ({"stage": STAGE}, ["stage: was None, is '(not there)'", "stage.name: was '(not there)', is 'first'"]),
]


@pytest.mark.parametrize(("changes", "differences"), CONTINUED, ids=lambda value: str(value)[:60])
def test_a_continuation_names_every_difference_and_does_nothing(
    changes: dict[str, Any],
    differences: list[str],
    two_rank_run: Path,
    small_config: Callable[..., dict[str, Any]],
    run_arguments: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = run_arguments(two_rank_run)
    before = (two_rank_run / "metrics.jsonl").read_bytes()
    arguments[arguments.index("--config") + 1] = str(written(tmp_path / "train.yaml", small_config(), changes))
    assert main(["run", *arguments]) == 2
    said = capsys.readouterr().err
    assert "was written under other settings, continuing would train something else:" in said
    for difference in differences:
        assert f"  {difference}" in said
    assert "name what may change with --allow-change KEY" in said
    assert said.count("error:") == 1 and "Traceback" not in said
    assert (two_rank_run / "metrics.jsonl").read_bytes() == before


def test_the_table_is_long_enough_and_covers_every_section() -> None:
    from training.config import TrainConfig

    keys = {key.split(".")[0] for changes, _, _ in WRONG for key in changes}
    switches = {"activation_checkpointing", "compile", "deterministic"}
    assert len(WRONG) + len(CONTINUED) > 75
    assert set(TrainConfig.model_fields) - switches <= keys
