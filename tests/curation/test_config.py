"""The run's config: files that ship are valid, mistakes are named with their key, a Ray job takes absolute paths only."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.config import WORKER_STAGES, CurateConfig, admission_of, load_curate_config
from curation.match_settings import MatchSettings
from schemas.buckets import CLASSES
from schemas.errors import ConfigError
from schemas.tables import ADMISSIONS

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("curate.yaml", "curate_demo.yaml")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_valid(name: str) -> None:
    config = load_curate_config(ROOT / "configs" / name, ["output=/data/x"])
    assert config.output_path == Path("/data/x")
    assert all(config.stage_resources(stage).cpus > 0 for stage in WORKER_STAGES)


@pytest.mark.parametrize("set_name", CLASSES)
def test_every_set_has_an_admission(set_name: str) -> None:
    assert admission_of(set_name) in ADMISSIONS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("outputs=x", r"outputs: unknown key; did you mean 'output'"),
        ("encode.set=[64p]", r"encode\.set: unknown key; did you mean 'sets'"),
        ("encode.sets=[65p]", r"65p"),
        ("encode.codec=dtc", r"encode\.codec.*'dct' or 'wan'"),
        ("encode.codec_options={path: /models/wan}", r"codec_options has path: codec 'dct' takes no options"),
        ("sources=[]", r"sources"),
        ("sources=[{folder: a, glob: b}]", r"exactly one of folder, glob, list, media"),
        ("sources=[{domain: x}]", r"exactly one of folder, glob, list, media"),
        ("ray.analyze.cpus=0", r"ray\.analyze\.cpus"),
        ("sandbox.attempts=two", r"sandbox\.attempts"),
        (
            "output=ftp://host/run1",
            r"output: .*'ftp://host/run1' is of an unknown scheme; expected a local path, file://, s3:// or gs://",
        ),
        (
            "models.cache_dir=gs://bucket/models",
            r"models\.cache_dir.*'gs://bucket/models' is not a place on this machine",
        ),
        ("output=file://server/run1", r"output: .*expected file:///absolute/path"),
    ],
)
def test_mistakes_are_named_with_their_key(change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_curate_config(ROOT / "configs" / "curate_demo.yaml", [change])


def test_a_file_uri_is_its_path() -> None:
    changes = ["output=file:///data/a%20b", "models.cache_dir=file:///data/models"]
    config = load_curate_config(ROOT / "configs" / "curate_demo.yaml", changes)
    assert (config.output_path, config.cache_path) == (Path("/data/a b"), Path("/data/models"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["output=out"], r"output: 'out' is a relative path.*temporary copy"),
        (["output=/out", "sources=[videos]"], r"sources\.0\.folder: 'videos' is a relative path.*absolute path"),
        (["output=/out", "sources=['*.mp4']"], r"sources\.0\.glob"),
        (
            ["output=/out", "sources=[/videos]", "match.against=[/data/run1, run2]"],
            r"match\.against: 'run2' is a relative path.*absolute path",
        ),
    ],
)
def test_relative_paths_are_refused_under_a_ray_job(
    monkeypatch: pytest.MonkeyPatch, changes: list[str], words: str
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=words):
        load_curate_config(ROOT / "configs" / "curate_demo.yaml", changes)


def test_absolute_paths_and_media_are_taken_under_a_ray_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    config = load_curate_config(ROOT / "configs" / "curate_demo.yaml", ["output=/out"])
    assert isinstance(config, CurateConfig)


def test_limits_follow_the_descriptor_where_none_are_given() -> None:
    """Once filled in they are in the file that workers read, and stay."""
    path = ROOT / "configs" / "curate_demo.yaml"
    assert load_curate_config(path).match.candidate_cosine == MatchSettings().candidate_cosine
    match = load_curate_config(path, ["analyze.descriptor=phash", "match.min_mean_cosine=0.7"]).match
    assert (match.candidate_cosine, match.single_frame_cosine) == (0.55, 0.75)
    assert match.min_mean_cosine == 0.7
    again = MatchSettings.model_validate(match.model_dump(mode="json"))
    assert again.for_descriptor("phash") == match
