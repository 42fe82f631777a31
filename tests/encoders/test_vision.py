"""Teachers, tagger, NSFW, text boxes and copy descriptors: real weights on real pictures."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from encoders.copy_descriptor import CopyDescriptor
from encoders.efficientnet import load_efficientnet_lite0
from encoders.nsfw import NsfwScorer
from encoders.registry import Registry
from encoders.tagger import ImageTagger
from encoders.teacher import EfficientNetTeacher, get_teacher, teacher_frames
from encoders.text_detection import TextDetector
from schemas.errors import ConfigError, DataError

Video = Callable[[str, int], NDArray[np.uint8]]
Photo = Callable[[str], NDArray[np.uint8]]


def resized(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(frame).resize((width, height), resample=Image.Resampling.BOX))


@pytest.fixture(scope="module")
def tagger(registry: Registry) -> ImageTagger:
    return ImageTagger(registry=registry)


@pytest.fixture(scope="module")
def teacher(registry: Registry) -> EfficientNetTeacher:
    return EfficientNetTeacher(registry=registry)


@pytest.fixture(scope="module")
def nsfw(registry: Registry) -> NsfwScorer:
    return NsfwScorer(registry=registry)


@pytest.fixture(scope="module")
def text_detector(registry: Registry) -> TextDetector:
    return TextDetector(registry=registry)


@pytest.mark.parametrize(
    ("name", "words"),
    [("chelsea", "cat tabby"), ("coffee", "espresso cup"), ("rocket", "missile projectile"), ("flower", "daisy")],
)
def test_tagger_names_what_is_there(tagger: ImageTagger, photo: Photo, name: str, words: str) -> None:
    (label, probability), *rest = tagger.tags([photo(name)])
    assert any(word in label for word in words.split())
    assert 0.2 < probability < 1 and all(probability >= other for _, other in rest) and len(rest) == 4


def test_tags_are_the_mean_over_frames(tagger: ImageTagger, photo: Photo) -> None:
    cat, coffee = photo("chelsea"), photo("coffee")
    single = {label: probability for frame in (cat, coffee) for label, probability in tagger.tags([frame], top=1)}
    both = dict(tagger.tags([cat, coffee], top=1000))
    for label, probability in single.items():
        assert both[label] >= probability / 2 - 1e-9
    assert sum(both.values()) == pytest.approx(1, abs=1e-6)


def test_teacher_map_is_the_token_grid(teacher: EfficientNetTeacher, video: Video) -> None:
    frames = np.stack([resized(frame, 64, 112) for frame in video("bikes", 17)])
    features = teacher.features(frames)
    assert features.shape == (5, 4, 7, 320) and features.dtype == np.float16
    assert teacher.features(frames, (5, 2, 3)).shape == (5, 2, 3, 320)
    assert np.array_equal(teacher.features(frames[:9]), features[:3])
    assert np.array_equal(teacher_frames(frames), frames[[0, 4, 8, 12, 16]])
    assert float(features.astype(np.float32).std()) > 0.5


def test_teacher_features_follow_the_picture(teacher: EfficientNetTeacher, photo: Photo) -> None:
    """Tokens of a half that did not change stay far closer than tokens of the half that did."""
    one = resized(photo("chelsea"), 128, 256)
    other = one.copy()
    other[:, 192:] = resized(photo("coffee"), 128, 64)
    a, b = (teacher.features(frame[None]).astype(np.float64)[0] for frame in (one, other))
    change = np.linalg.norm(a - b, axis=-1).mean(axis=0)
    assert change[:4].mean() < 0.5 * change[12:].mean()


def test_teacher_refuses_what_does_not_fit(teacher: EfficientNetTeacher) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        teacher.features(np.zeros((1, 24, 32, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="4k"):
        teacher.features(np.zeros((2, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="does not fit 1 latent frames"):
        teacher.features(np.zeros((1, 32, 32, 3), dtype=np.uint8), (2, 2, 2))
    with pytest.raises(ConfigError, match="'efficientnet' is unknown"):
        get_teacher("efficientnet")


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    import torch

    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(DataError, match="does not hold the weights of EfficientNet-Lite0"):
        load_efficientnet_lite0(tmp_path / "part.pth")


def test_dinov2_by_path(tmp_path: Path, video: Video) -> None:
    """The real class, tiny and random, on a grid that is not square."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    dino = get_teacher("dinov2", path=tmp_path)
    frames = np.stack([resized(frame, 64, 112) for frame in video("bikes", 9)])
    features = dino.features(frames)
    assert features.shape == (3, 4, 7, 32) and dino.channels == 32
    assert np.array_equal(dino.features(frames[:5]), features[:2])


def reference_nsfw_input(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """open_nsfw's recipe, written again from its description: 256x256, JPEG of the middle 224, BGR, minus the ImageNet mean."""
    small = Image.fromarray(frame, mode=None).resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    stream = BytesIO()
    small.save(stream, "JPEG")
    red, green, blue = Image.open(BytesIO(stream.getvalue())).split()
    planes = [np.asarray(plane, dtype=np.float32) for plane in (blue, green, red)]
    return np.stack([plane - mean for plane, mean in zip(planes, (104, 117, 123), strict=True)], axis=-1)


def test_nsfw_equals_the_reference_preprocessing(nsfw: NsfwScorer, registry: Registry, photo: Photo) -> None:
    import onnxruntime

    frames = [photo(name) for name in ("chelsea", "astronaut", "china", "ihc")]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(registry.fetch("nsfw.opennsfw"), options, providers=["CPUExecutionProvider"])
    expected = [session.run(None, {"input:0": reference_nsfw_input(frame)[None]})[0][0, 1] for frame in frames]
    found = nsfw.scores(frames)
    assert found.dtype == np.float32 and found.shape == (4,)
    assert np.array_equal(found, np.array(expected, dtype=np.float32))
    assert found.max() < 0.2 and len(set(found.tolist())) == 4
    assert nsfw.scores([]).shape == (0,)


def with_words(frame: NDArray[np.uint8], position: tuple[int, int], words: str, size: int) -> NDArray[np.uint8]:
    image = Image.fromarray(frame)
    ImageDraw.Draw(image).text(position, words, fill=(255, 255, 255), font=ImageFont.load_default(size))
    return np.array(image)


def test_drawn_words_are_found_where_they_are(text_detector: TextDetector, photo: Photo) -> None:
    flower = photo("flower")
    assert text_detector.boxes(flower) == []
    (box,) = text_detector.boxes(with_words(flower, (400, 30), "REELYARD", 36))
    assert box.score > 0.6
    assert 10 <= box.top < box.bottom <= 85 and 380 <= box.left < box.right <= 600
    assert (box.right - box.left) > 3 * (box.bottom - box.top)


def test_a_page_is_full_of_text(text_detector: TextDetector, photo: Photo) -> None:
    page = photo("page")
    boxes = text_detector.boxes(page)
    assert len(boxes) >= 6
    assert all(0 <= b.top < b.bottom <= page.shape[0] and 0 <= b.left < b.right <= page.shape[1] for b in boxes)


def test_text_detector_is_silent_and_bears_odd_sizes(
    text_detector: TextDetector, capfd: pytest.CaptureFixture[str], photo: Photo
) -> None:
    text_detector.boxes(photo("flower"), 320)
    assert text_detector.boxes(np.zeros((4, 900, 3), dtype=np.uint8)) == []
    assert text_detector.boxes(photo("flower")[:1, :1]) == []
    assert capfd.readouterr() == ("", "")


def recoded_and_cropped(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half the size, JPEG at quality 40, 5 % off each side."""
    height, width = frame.shape[:2]
    cropped = frame[height // 20 : height - height // 20, width // 20 : width - width // 20]
    stream = BytesIO()
    Image.fromarray(resized(cropped, height // 2, width // 2)).save(stream, "JPEG", quality=40)
    with Image.open(BytesIO(stream.getvalue())) as image:
        return np.array(image)


@pytest.mark.parametrize("weights", ["sscd", "sscd_distilled"])
def test_copies_are_near_and_others_far(weights: str, registry: Registry, photo: Photo, video: Video) -> None:
    descriptor = CopyDescriptor(weights, registry=registry)  # type: ignore[arg-type]
    frames = [photo(name) for name in ("chelsea", "astronaut", "china", "coffee")] + [video("bikes", 1)[0]]
    originals = descriptor.describe(frames)
    copies = descriptor.describe([recoded_and_cropped(frame) for frame in frames])
    assert originals.shape == (5, 512) and originals.dtype == np.float16
    assert np.allclose(np.linalg.norm(originals.astype(np.float64), axis=1), 1, atol=2e-3)
    cosines = copies.astype(np.float64) @ originals.astype(np.float64).T
    assert np.diag(cosines).min() > 0.75
    assert cosines[~np.eye(len(frames), dtype=bool)].max() < 0.5


def test_a_descriptor_depends_on_its_frame_alone(registry: Registry, photo: Photo) -> None:
    descriptor = CopyDescriptor("sscd_distilled", registry=registry)
    frames = [photo("chelsea"), photo("coffee")]
    assert np.array_equal(descriptor.describe(frames)[1], descriptor.describe(frames[1:])[0])
    assert descriptor.describe([]).shape == (0, 512)


def test_fingerprints_differ_by_weights_and_options(
    registry: Registry, tagger: ImageTagger, teacher: EfficientNetTeacher
) -> None:
    found = [
        tagger.fingerprint,
        teacher.fingerprint,
        CopyDescriptor("sscd", registry=registry).fingerprint,
        CopyDescriptor("sscd", side=288, registry=registry).fingerprint,
        CopyDescriptor("sscd_distilled", registry=registry).fingerprint,
    ]
    assert len(set(found)) == len(found)
    assert EfficientNetTeacher(registry=registry).fingerprint == teacher.fingerprint
