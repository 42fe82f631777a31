"""Teachers: who has which, mistakes in words, features from shards on any grid, and real networks that run in training."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from encoders.dct import DctCodec
from encoders.registry import Registry
from encoders.teacher import get_teacher
from schemas.buckets import Bucket
from schemas.errors import ConfigError, DataError, ReelyardError, UsageError
from schemas.shards import SetInfo
from training.batch import BatchMaker
from training.checkpoints.checkpoint import find_checkpoint
from training.config import RepaConfig, TrainConfig
from training.loader import LaneBatch, PlannedLoader
from training.loading.clip_arrays import ClipArrays
from training.loading.teacher_grid import resample_teacher
from training.online_teachers import OnlineTeachers
from training.run_setup import RunRequest, prepare_run
from training.teachers import StoredTeachers, check_teachers, open_teachers, parse_teacher_paths

STORED = RepaConfig(tap_block=0, weight=0.5)
ONLINE = RepaConfig(tap_block=0, weight=0.5, source="online")
BOTH = {"video_real": "vjepa2", "image_real": "dinov2"}


def info(teacher_by_branch: dict[str, str | None], width: int | None = 12, **values: Any) -> SetInfo:
    return SetInfo(
        **{
            "set_name": "tiny",
            "fps": 24.0,
            "codec": "dct",
            "codec_fingerprint": DctCodec().fingerprint,
            "latent_channels": 16,
            "text_encoder": "minilm",
            "text_encoder_fingerprint": "text",
            "text_width": 16,
            "teacher_by_branch": teacher_by_branch,
            "teacher_width": width,
            "seed": 0,
            "shards": (),
            **values,
        }
    )


def repa(base: RepaConfig, **changes: Any) -> RepaConfig:
    return RepaConfig(**{**base.model_dump(), **changes})


def test_sets_may_have_teachers_of_their_own_and_of_different_widths() -> None:
    infos = [info({"image_real": "dinov2", "video_real": None}, 8), info({"video_real": "vjepa2"}, 12)]
    teachers = open_teachers(STORED, infos)
    assert teachers is not None and teachers.widths == {"dinov2": 8, "vjepa2": 12}
    assert open_teachers(None, infos) is None


@pytest.mark.parametrize(
    ("settings", "infos", "kind", "message"),
    [
        (STORED, [info({}, None)], ConfigError, "the sets 'tiny' have no teacher features (set.json: teacher_by_branch); set repa=null"),
        (
            repa(STORED, teacher_by_branch={"video_real": "vjepa2"}),
            [info({"video_real": "dinov2"})],
            ConfigError,
            "gives video_real the teacher 'vjepa2', the set 'tiny' has 'dinov2' stored for it",
        ),
        (
            repa(STORED, teacher_by_branch={"video_real": "vjepa2"}),
            [info({"image_real": "vjepa2"})],
            ConfigError,
            "gives video_real the teacher 'vjepa2', the set 'tiny' has None stored for it",
        ),
        (STORED, [info(BOTH, None)], DataError, "teacher_by_branch names 'vjepa2', but teacher_width is null"),
        (
            STORED,
            [info({"video_real": "vjepa2"}, 12), info({"video_real": "vjepa2"}, 16, set_name="other")],
            DataError,
            "differ in teacher 'vjepa2': width 12 and revision None in one, 16 and None in 'other'",
        ),
        (
            STORED,
            [
                info({"video_real": "vjepa2"}, revisions={"teacher.vjepa2": "a"}),
                info({"video_real": "vjepa2"}, revisions={"teacher.vjepa2": "b"}, set_name="other"),
            ],
            DataError,
            "revision a in one, 12 and b in 'other'",
        ),
        (STORED, [info({"video_real": "my.net"})], DataError, "teacher 'my.net' cannot name a projector"),
        (ONLINE, [info({}, None)], ConfigError, "neither repa.teacher_by_branch nor set.json says which teacher"),
        (ONLINE, [info({"video_real": "mine"})], ConfigError, "teacher 'mine' is unknown; expected one of efficientnet_lite0"),
    ],
)  # fmt: skip
def test_teachers_that_do_not_fit_the_sets_are_refused(
    settings: RepaConfig, infos: list[SetInfo], kind: type[ReelyardError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        check_teachers(settings, infos)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "paths", "codec_path", "message"),
    [
        (STORED, {"dinov2": Path("x")}, None, "--teacher-path dinov2 was given, but no teacher runs in training"),
        (None, {}, Path("x"), "--codec-path was given, but no teacher runs in training"),
        (
            ONLINE,
            {"mine": Path("x")},
            None,
            "--teacher-path mine was given; the teachers of this run are dinov2, vjepa2",
        ),
    ],
)
def test_paths_that_nobody_asks_for_are_refused(
    settings: RepaConfig | None, paths: dict[str, Path], codec_path: Path | None, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_teachers(settings, [info(BOTH)], paths, codec_path)
    assert message in str(caught.value)


def test_paths_are_names_and_paths() -> None:
    assert parse_teacher_paths(["dinov2=/a/b", "vjepa2=c=d"]) == {"dinov2": Path("/a/b"), "vjepa2": Path("c=d")}
    for text in ("dinov2", "=x", "dinov2="):
        with pytest.raises(UsageError, match="not of the form NAME=PATH"):
            parse_teacher_paths([text])


def test_paths_of_what_has_no_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="the codec 'dct' has no weights"):
        open_teachers(ONLINE, [info(BOTH)], codec_path=Path("x"))
    with pytest.raises(ConfigError, match=r"models pull teacher\.efficientnet_lite0"):
        branch = {"video_real": "efficientnet_lite0"}
        open_teachers(ONLINE, [info(branch)], teacher_paths={"efficientnet_lite0": Path("x")})
    with pytest.raises(ReelyardError, match="model folder /nowhere does not exist"):
        open_teachers(ONLINE, [info({"video_real": "dinov2"})], teacher_paths={"dinov2": Path("/nowhere")})


# Stored features.


def arrays_by_clip(plan: Path, samples: Path, **options: Any) -> dict[tuple[str, Bucket], ClipArrays]:
    """Every clip of a plan, as one rank is given it."""
    found: dict[tuple[str, Bucket], ClipArrays] = {}

    def keep(batch: LaneBatch) -> None:
        found.update({(clip.clip_id, batch.bucket): _copied(clip) for clip in batch.clips})

    for _ in PlannedLoader(plan, samples=[samples], prepare=keep, **options):
        pass
    return found


def _copied(clip: ClipArrays) -> ClipArrays:
    from dataclasses import replace

    def own(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array.copy()

    return replace(clip, teacher_TYXC=own(clip.teacher_TYXC), image_ID=own(clip.image_ID))


def stored_arrays(samples: Path, member: str) -> dict[str, np.ndarray]:
    """The arrays of one kind in a set's tars, by clip."""
    found = {}
    for path in sorted(samples.glob("*.tar")):
        with tarfile.open(path) as archive:
            for entry in archive.getmembers():
                if entry.name.endswith(f".{member}"):
                    data = archive.extractfile(entry)
                    assert data is not None
                    found[entry.name.partition(".")[0]] = np.load(io.BytesIO(data.read()))
    return found


@pytest.fixture(scope="module")
def foreign_set(tmp_path_factory: pytest.TempPathFactory, make_set: Callable[..., Path], clip_type: Any) -> Path:
    """Features of pairs of pictures on a grid of their own, clips of two branches, image tokens."""
    clips = []
    for index in range(8):
        branch = "video_synthetic" if index % 2 else ""
        clips += [clip_type(65, teacher_grid=(32, 4, 4), branch=branch), clip_type(1, teacher_grid=(1, 2, 3))]
    teachers = {"video_real": "vjepa2", "video_synthetic": None, "image_real": "vjepa2"}
    folder = tmp_path_factory.mktemp("sets") / "foreign"
    return make_set(folder, clips, per_shard=8, teacher_by_branch=teachers, image_shape=(5, 6))


def test_features_of_another_grid_arrive_on_the_token_grid_of_the_bucket(
    foreign_set: Path, make_plan: Callable[..., Any], tmp_path: Path
) -> None:
    """A 65-frame clip used at 33 frames: its 17 latent frames are resampled, and the first 9 taken."""
    plan = make_plan(tmp_path / "plan", [foreign_set], longest=33, steps=4, batch={1: 2, 33: 2})
    stored = stored_arrays(foreign_set, "teacher.npy")
    found = arrays_by_clip(plan.folder, foreign_set, with_teacher=True)
    videos = 0
    for (clip_id, bucket), clip in found.items():
        if bucket.frames == 1:
            assert clip.teacher_TYXC is not None and clip.teacher_TYXC.shape[:3] == (1, 2, 3)
            continue
        videos += 1
        assert clip.teacher_TYXC is not None and clip.teacher_TYXC.dtype == np.float16
        np.testing.assert_array_equal(clip.teacher_TYXC, resample_teacher(stored[clip_id], (17, 2, 3))[:9])
    assert videos > 2


def test_image_tokens_are_read_where_they_are_asked_for(
    foreign_set: Path, make_plan: Callable[..., Any], tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan", [foreign_set], longest=33, steps=2, batch={1: 2, 33: 2})
    stored = stored_arrays(foreign_set, "image.npy")
    for (clip_id, bucket), clip in arrays_by_clip(plan.folder, foreign_set, with_image=True).items():
        assert (clip.image_ID is None) == (bucket.frames == 1)
        assert clip.teacher_TYXC is None
        if clip.image_ID is not None:
            np.testing.assert_array_equal(clip.image_ID, stored[clip_id])
    assert all(clip.image_ID is None for clip in arrays_by_clip(plan.folder, foreign_set).values())


def test_the_branch_decides_whose_features_a_clip_has(
    foreign_set: Path, make_plan: Callable[..., Any], tmp_path: Path
) -> None:
    plan = make_plan(tmp_path / "plan", [foreign_set], longest=33, steps=2, batch={1: 2, 33: 2})
    found = list(arrays_by_clip(plan.folder, foreign_set, with_teacher=True).values())
    all_teachers = StoredTeachers({"vjepa2": 12})
    videos_only = StoredTeachers({"vjepa2": 12}, {"video_real": "vjepa2", "image_real": None})
    assert {clip.branch for clip in found} == {"video_real", "video_synthetic", "image_real"}
    for clip in found:
        features = all_teachers.features_of(clip)
        assert (features is None) == (clip.branch == "video_synthetic")
        assert features is None or (features.teacher, features.features_TYXC is clip.teacher_TYXC) == ("vjepa2", True)
        assert (videos_only.features_of(clip) is not None) == (clip.branch == "video_real")
    with pytest.raises(DataError, match=r"teacher\.npy is 12 wide, set\.json says 10"):
        StoredTeachers({"vjepa2": 10}).features_of(next(clip for clip in found if clip.teacher))


# Online teachers, with the real classes.


def stripes(frames: int, slant: float = 9.0) -> np.ndarray:
    """Moving stripes (T, 32, 48, 3)."""
    y, x = np.mgrid[0:32, 0:48]
    shades = [128 + 90 * np.sin((x + 2 * index) / 5 + y / slant) for index in range(frames)]
    return np.stack([np.stack([shade, 255 - shade, shade], axis=-1) for shade in shades]).astype(np.uint8)


def real_clip(frames: int = 33, branch: str = "video_real", teacher: str | None = "vjepa2") -> ClipArrays:
    """Stripes through the real codec."""
    return ClipArrays(
        clip_id=f"{branch}{frames}",
        latent_TCHW=DctCodec().encode(stripes(frames)),
        text_by_kind={kind: np.zeros((2, 4), np.float16) for kind in ("long", "short", "first")},
        branch=branch,
        teacher=teacher,
    )


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModuleType) -> dict[str, Path]:
    """V-JEPA 2 and DINOv2 of different widths, small and random."""
    root = tmp_path_factory.mktemp("teachers")
    return {
        "vjepa2": tiny_models.tiny_vjepa2(root / "vjepa2", 24),
        "dinov2": tiny_models.tiny_dinov2(root / "dinov2", 32),
    }


def test_online_teachers_see_the_decoded_pictures_of_their_branch(networks: dict[str, Path]) -> None:
    video, image = real_clip(), real_clip(1, "image_real", None)
    settings = repa(ONLINE, teacher_by_branch=BOTH)
    teachers = open_teachers(settings, [info({}, None)], teacher_paths=networks)
    assert teachers is not None and teachers.widths == {"dinov2": 32, "vjepa2": 24}
    assert teachers.notes == ()
    for clip, name in ((video, "vjepa2"), (image, "dinov2")):
        features = teachers.features_of(clip)
        assert features is not None and features.teacher == name
        pixels = DctCodec().decode(clip.latent_TCHW)
        np.testing.assert_array_equal(features.features_TYXC, get_teacher(name, path=networks[name]).features(pixels))
        assert features.features_TYXC.shape[:3] == (clip.latent_TCHW.shape[0], 2, 3)
    assert teachers.features_of(real_clip(1, "image_synthetic", "dinov2")) is None
    of_the_set = open_teachers(ONLINE, [info(BOTH)], teacher_paths=networks)
    assert of_the_set is not None
    found = of_the_set.features_of(video)
    assert found is not None and found.teacher == "vjepa2"


def test_features_of_a_shorter_bucket_are_those_of_the_longer_one(networks: dict[str, Path]) -> None:
    long = real_clip(33)
    short = ClipArrays(
        clip_id="short", latent_TCHW=long.latent_TCHW[:1], text_by_kind={}, branch=long.branch, teacher="vjepa2"
    )
    teachers = open_teachers(ONLINE, [info(BOTH)], teacher_paths=networks)
    assert teachers is not None
    of_long, of_short = teachers.features_of(long), teachers.features_of(short)
    assert of_long is not None and of_short is not None
    np.testing.assert_array_equal(of_short.features_TYXC, of_long.features_TYXC[:1])


def test_online_features_go_into_the_batch_until_alignment_is_over(
    networks: dict[str, Path], small_config: Callable[..., dict[str, Any]]
) -> None:
    section = {"tap_block": 1, "weight": 0.5, "hidden_width": 24, "source": "online", "until_step": 1}
    values = small_config(repa={**section, "teacher_by_branch": BOTH})
    values["model"]["text_width"] = 4
    settings = TrainConfig.model_validate(values)
    assert settings.repa is not None
    teachers = open_teachers(settings.repa, [info({}, None)], teacher_paths=networks)
    assert teachers is not None
    calls = []
    watched = OnlineTeachers(DctCodec(), {name: get_teacher(name, path=path) for name, path in networks.items()}, BOTH)
    watched.features_of = lambda clip: calls.append(clip.clip_id) or teachers.features_of(clip)  # type: ignore[method-assign]
    maker = BatchMaker(settings, np.zeros((1, 4), np.float16), watched)
    clips = (real_clip(), real_clip(branch="video_synthetic"))
    lane = {"micro": 0, "lane": 0, "bucket": Bucket(33, 32, 48), "clips": clips}
    on, over = maker(LaneBatch.of_clips(step=0, **lane)), maker(LaneBatch.of_clips(step=1, **lane))
    assert {name: each.rows_N.tolist() for name, each in on.teachers.items()} == {"dinov2": [], "vjepa2": [0]}
    assert on.teachers["vjepa2"].features_NLC.shape == (1, 9 * 2 * 3, 24)
    assert on.teachers["dinov2"].features_NLC.shape == (0, 9 * 2 * 3, 32)
    assert over.num_teachers == 0 and len(calls) == 2, "no teacher runs once alignment is over"


def test_a_codec_that_did_not_make_the_latents_is_said(networks: dict[str, Path]) -> None:
    teachers = open_teachers(ONLINE, [info(BOTH, codec_fingerprint="another")], teacher_paths=networks)
    assert teachers is not None
    assert "not the one that made the set 'tiny'" in teachers.notes[0] and "set.json says another" in teachers.notes[0]


def test_the_real_efficientnet_runs_in_training() -> None:
    """Real weights, through the registry; what it says of the decoded clip is nearer to what it says of the clip than of another."""
    registry = Registry()
    registry.fetch("teacher.efficientnet_lite0")
    teachers = open_teachers(ONLINE, [info({"video_real": "efficientnet_lite0"}, 320)])
    assert teachers is not None and teachers.widths == {"efficientnet_lite0": 320}
    features = teachers.features_of(real_clip(teacher="efficientnet_lite0"))
    assert features is not None and features.features_TYXC.shape == (9, 2, 3, 320)
    teacher = get_teacher("efficientnet_lite0")
    found, same, other = (
        torch.from_numpy(array).float().flatten()
        for array in (features.features_TYXC, teacher.features(stripes(33)), teacher.features(stripes(33, slant=1.0)))
    )
    near, far = (torch.cosine_similarity(found, against, dim=0).item() for against in (same, other))
    assert near > 0.6 and near > far + 0.2, (near, far)


def test_a_run_with_two_online_teachers(
    networks: dict[str, Path], run_arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """From the command, with weights by flags."""
    from training.cli import main
    from training.metrics import read_lines

    section = {"tap_block": 1, "weight": 0.5, "hidden_width": 24, "source": "online", "teacher_by_branch": BOTH}
    flags = [part for name, path in networks.items() for part in ("--teacher-path", f"{name}={path}")]
    assert main(["run", *run_arguments(tmp_path / "run", *flags, repa=section, steps=2)]) == 0
    assert all(line["repa_loss"] > 0.1 for line in read_lines(tmp_path / "run" / "metrics.jsonl"))
    record = yaml.safe_load((find_checkpoint(tmp_path / "run", None) / "record.json").read_text())
    assert record["config"]["repa"]["teacher_by_branch"] == BOTH


def test_further_processes_are_told_the_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_set: Path, tiny_plan: Any, config_file: Any
) -> None:
    import training.commands.run as command

    told: list[str] = []
    monkeypatch.setattr(command, "launch_local", lambda count, arguments, **_: told.extend(arguments) or 0)
    from training.cli import main

    section = {"tap_block": 1, "weight": 0.5, "source": "online", "teacher_by_branch": BOTH}
    paths = [
        "--plan",
        tiny_plan.folder,
        "--samples",
        tiny_set,
        "--output",
        tmp_path / "run",
        "--config",
        config_file(repa=section),
    ]
    flags = ["--teacher-path", "dinov2=/a", "--teacher-path", "vjepa2=/b", "--codec-path", "/c", "--processes", 2]
    assert main(["run", *map(str, [*paths, *flags])]) == 0
    for wanted in (["--teacher-path", "dinov2=/a"], ["--teacher-path", "vjepa2=/b"], ["--codec-path", "/c"]):
        assert wanted in [told[index : index + 2] for index in range(len(told))]


@pytest.mark.parametrize(
    ("image_shape", "image_width", "message"),
    [
        (None, 6, "the set 'tiny' has none (set.json: image_width is null)"),
        ((5, 6), 8, "model.image_width is 8, the image tokens of the set 'tiny' are 6 wide (set.json); set model.image_width=6"),
    ],
)  # fmt: skip
def test_image_tokens_that_the_set_lacks_are_refused(
    image_shape: tuple[int, int] | None,
    image_width: int,
    message: str,
    make_set: Callable[..., Path],
    make_plan: Callable[..., Any],
    small_config: Callable[..., dict[str, Any]],
    config_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = make_set(tmp_path / "set", image_shape=image_shape)
    model = {**small_config()["model"], "image_width": image_width}
    request = RunRequest(
        config=config_file(model=model, i2v={"probability": 0.5, "image_tokens": True}),
        plan=make_plan(tmp_path / "plan", [folder], steps=2).folder,
        samples=(folder,),
        output=tmp_path / "run",
    )
    with pytest.raises(ConfigError) as caught:
        prepare_run(request)
    assert message in str(caught.value)
