"""`reelyard-curate` at its edges: bad input ends with exit code 1 or 2 and one message; models are listed, verified and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.cli import main

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "configs" / "curate_demo.yaml")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "--config", "/no/such.yaml"], 2, "config file /no/such.yaml cannot be read"),
        (["run", "--config", DEMO, "--set", "ouput=x"], 2, "ouput: unknown key; did you mean 'output'"),
        (
            ["run", "--config", DEMO, "--set", "output={out}", "--set", "sources=[/no/such]"],
            2,
            "'/no/such' does not exist",
        ),
        (
            ["run", "--config", DEMO, "--set", "output={out}", "--set", "sources=['{empty}']"],
            2,
            "holds no video or image",
        ),
        (["run", "--config", DEMO, "--phase", "packing"], 2, "--phase 'packing' is unknown; expected one of analyze"),
        (["decide", "--config", DEMO, "--set", "output={out}"], 1, "clips.parquet does not exist"),
        (["models", "pull", "no.such"], 2, "model 'no.such' is not in the registry"),
        (["models", "pull", "copies.sscd", "--cache-dir", "{empty}"], 1, "not under an open licence"),
        (["nonsense"], 2, "No such command 'nonsense'"),
    ],
)
def test_bad_input_ends_with_one_message(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"{out}": str(tmp_path / "out"), "{empty}": str(tmp_path / "empty")}
    for mark, path in places.items():
        arguments = [argument.replace(mark, path) for argument in arguments]
    assert main(arguments) == code
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_a_dry_run_says_what_there_is_and_writes_nothing_but_hashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["run", "--config", DEMO, "--set", f"output={output}", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "preflight: sources: 20 files" in said and "--dry-run stops here" in said
    assert [path for path in output.rglob("*") if path.is_file()] == [output / "cache" / "hashes.json"]


def test_models_are_listed_with_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    said = capsys.readouterr().out
    assert "nsfw.opennsfw" in said and "needs --accept" in said and "BSD-2-Clause" in said and "media." not in said


def test_the_list_says_which_weights_are_not_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0]: lines[at + 1].strip() for at, line in enumerate(lines) if line[0] != " "}
    unpinned = {name for name, after in named.items() if after == "not pinned: first download is recorded"}
    assert unpinned == {"latents.wan", "text.t5gemma2", "teacher.dinov2", "teacher.vjepa2", "image.siglip"}


def test_verify_names_what_is_missing_and_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "verify"]) == 0
    capsys.readouterr()
    damaged = tmp_path / "nsfw.opennsfw" / "open-nsfw.onnx"
    damaged.parent.mkdir()
    damaged.write_bytes(b"not a model")
    names = ["nsfw.opennsfw", "text_detector.ppocr_det", "--cache-dir", str(tmp_path)]
    assert main(["models", "verify", *names]) == 1
    said = capsys.readouterr()
    assert "open-nsfw.onnx damaged" in said.out and "missing" in said.out and "models pull" in said.err


def test_pull_shows_licences_and_gives_the_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pull", "copies.sscd", "--accept"]) == 0
    said = capsys.readouterr()
    assert "no redistribution" in said.err and "sscd.onnx" in said.out
