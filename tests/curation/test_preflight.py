"""Preflight: every lack at once, in words and numbers, before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from curation.config import CurateConfig, StageResources
from curation.encoding.worker import load_models
from curation.engine import workers_for
from curation.objects import Objects
from curation.pipeline import PHASES
from curation.preflight import needed_models, preflight
from encoders.registry import fetch
from schemas.config import build_config
from schemas.errors import ModelMissingError, PreflightError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(fetch("media.chelsea").read_bytes())
    return tmp_path


def _config(folder: Path, **changes: object) -> CurateConfig:
    values = {"output": str(folder / "out"), "sources": [str(folder / "in")], **changes}
    return build_config(CurateConfig, values, source="test")


def test_a_good_config_passes_with_numbers(folder: Path) -> None:
    checks = preflight(_config(folder, ray={"num_cpus": 2}), PHASES)
    text = {check.name: check.text for check in checks}
    assert all(check.ok for check in checks)
    assert text["sources"].startswith("1 files") and "GB free" in text["disk"]
    assert {name for name in needed_models(_config(folder), PHASES)} >= {"copies.sscd", "text.minilm"}


def test_an_output_on_s3_is_really_written_and_what_is_refused_is_said(folder: Path, bucket: str, s3: Any) -> None:
    (output,) = [one for one in preflight(_config(folder, output=f"{bucket}/run"), ("decide",)) if one.name == "output"]
    assert output.text == f"{bucket}/run"
    methods = [line.split()[0] for line in s3.seen() if ".tmp-preflight-" in line]
    assert methods[:2] == ["PUT", "GET"] and Objects(bucket).listing() == {}
    s3.fail({"path": ".tmp-preflight-", "method": "PUT", "status": 403, "times": 9})
    with pytest.raises(PreflightError, match=r"/run cannot be written \(access is denied \(403\)"):
        preflight(_config(folder, output=f"{bucket}/run"), ("decide",))
    s3.fail()
    with pytest.raises(PreflightError, match=r"s3://none-such/run cannot be written \(is not there \(404\)"):
        preflight(_config(folder, output="s3://none-such/run"), ("decide",))


def test_every_lack_is_listed_at_once(folder: Path) -> None:
    config = _config(
        folder,
        ray={"num_cpus": 1, "analyze": {"cpus": 2}},
        models={"cache_dir": str(folder / "no_models")},
    )
    with pytest.raises(PreflightError) as caught:
        preflight(config, PHASES)
    text = str(caught.value)
    assert "need 2 CPUs (analyze 1 x 2), the cluster has 1" in text
    assert "reelyard-curate models pull copies.sscd --accept" in text and "pull text.minilm" in text


def test_an_output_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "out").write_text("a file")
    with pytest.raises(PreflightError, match=r"output: .*out cannot be written"):
        preflight(_config(folder), PHASES)


def test_only_the_models_of_the_asked_phases_are_needed(folder: Path) -> None:
    config = _config(folder, models={"cache_dir": str(folder / "no_models")})
    assert needed_models(config, ("match", "decide", "pack")) == []


def test_phases_that_read_tables_need_no_sources_and_no_cpus(folder: Path) -> None:
    config = _config(folder, sources=[str(folder / "gone")], ray={"num_cpus": 1, "analyze": {"cpus": 2}})
    assert [check.name for check in preflight(config, ("match", "decide", "report"))] == ["output"]
    for phase in ("analyze", "caption", "encode", "pack"):
        with pytest.raises(UsageError, match="gone' does not exist"):
            preflight(config, (phase,))


def test_no_ffmpeg_binary_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(folder))
    assert all(check.ok for check in preflight(_config(folder), PHASES))


def test_the_weights_of_the_codec_are_needed_unless_a_path_is_given(folder: Path) -> None:
    models = {"cache_dir": str(folder / "no_models")}
    config = _config(folder, models=models, encode={"codec": "wan"})
    with pytest.raises(PreflightError, match=r"reelyard-curate models pull latents\.wan"):
        preflight(config, ("encode",))
    untaught = dict.fromkeys(config.encode.teacher_by_branch, None)
    settings = config.encode.model_copy(update={"teacher_by_branch": untaught})
    with pytest.raises(ModelMissingError, match="no_models"):  # the worker looks where the preflight looked
        load_models(settings, config.cache_path)
    given = _config(folder, encode={"codec": "wan", "codec_options": {"path": "/models/wan"}})
    assert "latents.wan" not in needed_models(given, PHASES)


def test_an_empty_folder_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match="holds no video or image file"):
        preflight(_config(tmp_path), PHASES)


@pytest.mark.parametrize(
    ("wanted", "cpus", "units", "expected"),
    [
        ({"a": StageResources(cpus=0.9)}, 2, 10, {"a": 2}),
        ({"a": StageResources(cpus=0.9)}, 2, 1, {"a": 1}),
        ({"a": StageResources(cpus=0.8), "b": StageResources(cpus=0.1, workers=1)}, 2, 10, {"a": 2, "b": 1}),
        ({"a": StageResources(cpus=0.9), "b": StageResources(cpus=0.9)}, 16, 99, {"a": 8, "b": 8}),
        ({"a": StageResources(cpus=1, workers=3)}, 16, 99, {"a": 3}),
    ],
)
def test_workers_fill_the_cluster_and_no_more(
    wanted: dict[str, StageResources], cpus: float, units: int, expected: dict[str, int]
) -> None:
    assert workers_for(wanted, cpus, 0.0, units) == expected


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            {"a": StageResources(cpus=0.9), "b": StageResources(cpus=1.2)},
            r"need 2\.1 CPUs \(a 1 x 0\.9 \+ b 1 x 1\.2\)",
        ),
        ({"a": StageResources(cpus=0.9, workers=3)}, r"need 2\.7 CPUs"),
        ({"a": StageResources(cpus=0.5, gpus=1)}, r"need 1 GPUs"),
    ],
)
def test_what_could_only_wait_for_ever_is_refused(wanted: dict[str, StageResources], words: str) -> None:
    with pytest.raises(PreflightError, match=words):
        workers_for(wanted, 2.0, 0.0, 10)
