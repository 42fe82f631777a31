"""VBench's lists and names, and videos that are made once, whatever happens in between."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from schemas.errors import UsageError
from training.evaluation.vbench.prompts import BenchPrompt, check_dimensions, read_bench_prompts
from training.evaluation.vbench.videos import VideoSettings, make_videos, plan_videos, video_name, video_seed

ENTRIES = [
    {
        "prompt_en": "a bird and a cat",
        "dimension": ["multiple_objects"],
        "auxiliary_info": {"multiple_objects": {"object": "bird and cat"}},
    },
    {"prompt_en": "a river, oil painting", "dimension": ["appearance_style"]},
    {"prompt_en": "a laptop, frozen in time", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a river, oil painting", "dimension": ["overall_consistency", "imaging_quality"]},
]


@pytest.fixture
def full_info(tmp_path: Path) -> Path:
    path = tmp_path / "VBench_full_info.json"
    path.write_text(json.dumps(ENTRIES))
    return path


def test_a_prompt_listed_twice_is_one_prompt_with_all_its_dimensions(full_info: Path) -> None:
    prompts = read_bench_prompts(full_info)
    assert [prompt.text for prompt in prompts] == [
        "a bird and a cat",
        "a river, oil painting",
        "a laptop, frozen in time",
    ]
    assert prompts[1].dimensions == ("appearance_style", "overall_consistency", "imaging_quality")
    assert list(prompts[1].entries) == [ENTRIES[1], ENTRIES[3]]
    assert [prompt.text for prompt in read_bench_prompts(full_info, ["imaging_quality"])] == ["a river, oil painting"]


def test_the_list_is_read_out_of_a_wheel(full_info: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "vbench-0.1.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(full_info, "vbench/VBench_full_info.json")
    assert read_bench_prompts(wheel) == read_bench_prompts(full_info)


def test_text_files_say_their_dimensions_by_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "prompts_per_dimension"
    folder.mkdir()
    (folder / "object_class.txt").write_text("a person\n\n  a boat \n")
    (folder / "subject_consistency.txt").write_text("a boat\n")
    (folder / "notes.txt").write_text("not a prompt\n")
    prompts = read_bench_prompts(folder)
    assert [prompt.text for prompt in prompts] == ["a person", "a boat"]
    assert prompts[1].dimensions == ("object_class", "subject_consistency", "motion_smoothness", "dynamic_degree")
    (tmp_path / "mine.txt").write_text("one\ntwo\n")
    assert [prompt.dimensions for prompt in read_bench_prompts(tmp_path / "mine.txt")] == [(), ()]


@pytest.mark.parametrize(
    ("text", "name", "dimensions", "message"),
    [
        ("{}", "a.json", [], "cannot be read (a JSON dict, not a list)"),
        ('[{"prompt_en": ""}]', "a.json", [], "entry 0 has no prompt_en and dimension"),
        ("[", "a.json", [], "cannot be read"),
        ("", "a.txt", [], "has no prompt"),
        ("x", "a.txt", ["color"], "does not say which prompt is for which dimension"),
        ("x", "color.txt", ["scene"], "has no prompt for scene"),
        ("x", "a.whl", [], "cannot be read (File is not a zip file)"),
    ],
)
def test_lists_that_are_none_are_refused_in_words(
    text: str, name: str, dimensions: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        read_bench_prompts(tmp_path / name, dimensions)
    assert message in str(caught.value)


def test_dimensions_are_vbenchs() -> None:
    assert check_dimensions(["color", "subject_consistency"]) == ("subject_consistency", "color")
    with pytest.raises(UsageError, match="--dimensions has colour, expected some of subject_consistency"):
        check_dimensions(["colour"])


def test_names_are_the_prompts_and_otherwise_safe_and_their_own() -> None:
    assert video_name("A 3D model of a 1800s victorian house.", 4) == "A 3D model of a 1800s victorian house.-4.mp4"
    assert video_name('rock-carved façades: "x" * ?', 0) == 'rock-carved façades: "x" * ?-0.mp4'
    odd = ["a/b", "a_b", "../../etc/passwd", "x" * 300, "x" * 299 + "y", "é" * 130, "line\nbreak", "nul\0"]
    names = [video_name(prompt, 0) for prompt in odd]
    assert len(set(names)) == len(odd)
    for name in names:
        assert "/" not in name and "\0" not in name and "\n" not in name and len(name.encode()) <= 255
        assert name.endswith("-0.mp4")


def prompts_of(*texts: str, dimension: str = "color") -> list[BenchPrompt]:
    return [BenchPrompt(text=text, dimensions=(dimension,)) for text in texts]


def test_every_video_has_a_seed_of_its_own_that_a_rerun_has_too() -> None:
    planned = plan_videos(prompts_of("a", "b"), seed=1)
    assert [video.file for video in planned] == [f"{prompt}-{index}.mp4" for prompt in "ab" for index in range(5)]
    assert len({video.seed for video in planned}) == 10
    assert planned == plan_videos(prompts_of("a", "b"), seed=1)
    assert {video.seed for video in planned}.isdisjoint(
        video.seed for video in plan_videos(prompts_of("a", "b"), seed=2)
    )
    assert planned[7].seed == video_seed(1, "b", 2), "whatever the list around it"


def test_more_videos_of_flickering_prompts_only() -> None:
    prompts = [*prompts_of("a"), *prompts_of("b", dimension="temporal_flickering")]
    planned = plan_videos(prompts, seed=0, per_prompt=2, per_flickering_prompt=4)
    assert [video.file for video in planned] == ["a-0.mp4", "a-1.mp4", "b-0.mp4", "b-1.mp4", "b-2.mp4", "b-3.mp4"]


def test_prompts_with_one_name_are_refused() -> None:
    first = "a/b"
    second = video_name(first, 0).removesuffix("-0.mp4")
    with pytest.raises(UsageError, match="two prompts would have the video"):
        plan_videos(prompts_of(first, second), seed=0)


def settings(**changes: Any) -> VideoSettings:
    values = {
        "run": "r",
        "checkpoint": "step-1",
        "weights": "ema",
        "frames": 5,
        "height": 32,
        "width": 48,
        "fps": 24.0,
        "seed": 0,
        "sampler": {},
    }
    return VideoSettings(**{**values, **changes})


class Painter:
    """Frames of a shade that is the seed's; may fail at a call."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.fails_at = fails_at

    def __call__(self, prompt: str, seed: int) -> np.ndarray:
        self.asked.append((prompt, seed))
        if len(self.asked) == self.fails_at:
            raise RuntimeError("killed")
        return np.full((5, 32, 48, 3), 16 + seed % 200, np.uint8)


def shade(path: Path) -> float:
    with av.open(str(path)) as container:
        return float(np.mean([frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]))


def test_an_interrupted_folder_is_gone_on_with(tmp_path: Path) -> None:
    planned = plan_videos(prompts_of("a", "b"), seed=0, per_prompt=2)
    with pytest.raises(RuntimeError, match="killed"):
        make_videos(planned, tmp_path, Painter(fails_at=3), settings())
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["a-0.mp4", "a-1.mp4"]
    painter = Painter()
    made = make_videos(planned, tmp_path, painter, settings())
    assert (made.made, made.kept, made.remade) == (2, 2, 0)
    assert painter.asked == [("b", planned[2].seed), ("b", planned[3].seed)]
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == [video.file for video in planned]
    for video in planned:
        assert shade(tmp_path / "videos" / video.file) == pytest.approx(16 + video.seed % 200, abs=3)
    written = json.loads((tmp_path / "videos.json").read_text())
    assert [(video["file"], video["seed"]) for video in written["videos"]] == [
        (video.file, video.seed) for video in planned
    ]
    assert json.loads((tmp_path / "prompts.json").read_text())["b-1.mp4"] == "b"


def test_broken_videos_are_made_again(tmp_path: Path) -> None:
    planned = plan_videos(prompts_of("a"), seed=0, per_prompt=3)
    make_videos(planned, tmp_path, Painter(), settings())
    whole = (tmp_path / "videos" / "a-0.mp4").read_bytes()
    (tmp_path / "videos" / "a-0.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "videos" / "a-2.mp4").write_bytes(b"")
    made = make_videos(planned, tmp_path, Painter(), settings())
    assert (made.made, made.kept, made.remade) == (2, 1, 2)
    assert len((tmp_path / "videos" / "a-0.mp4").read_bytes()) > 0.9 * len(whole)


def test_a_folder_is_never_a_mixture_of_settings(tmp_path: Path) -> None:
    planned = plan_videos(prompts_of("a"), seed=0, per_prompt=1)
    make_videos(planned, tmp_path, Painter(), settings())
    with pytest.raises(UsageError) as caught:
        make_videos(planned, tmp_path, Painter(), settings(checkpoint="step-2", sampler={"num_steps": 4}))
    assert "checkpoint: was 'step-1', is 'step-2'" in str(caught.value) and "sampler: was {}" in str(caught.value)
    more = plan_videos(prompts_of("b"), seed=0, per_prompt=1)
    make_videos(more, tmp_path, Painter(), settings())
    assert len(json.loads((tmp_path / "videos.json").read_text())["videos"]) == 2, (
        "other prompts of the same settings may join"
    )


def test_parts_make_every_video_once(tmp_path: Path) -> None:
    planned = plan_videos(prompts_of("a", "b"), seed=0, per_prompt=2)
    made = [make_videos(planned, tmp_path, Painter(), settings(), mine=planned[first::2]).made for first in range(2)]
    assert made == [2, 2] and len(list((tmp_path / "videos").iterdir())) == 4


def test_a_file_system_that_folds_capitals_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan_videos(prompts_of("A fantasy landscape", "a fantasy landscape"), seed=0, per_prompt=1)
    make_videos(planned, tmp_path / "here", Painter(), settings())
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name.endswith("probe-a") or exists(path))
    with pytest.raises(
        UsageError, match=r"does not tell 'A fantasy landscape-0\.mp4' from 'a fantasy landscape-0\.mp4'"
    ):
        make_videos(planned, tmp_path / "there", Painter(), settings())
    assert list((tmp_path / "there" / "making").iterdir()) == []
