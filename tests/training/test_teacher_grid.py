"""A teacher that says where and when each of its cells is: after resampling each token says its own place and time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from schemas.buckets import FRAME_COUNTS, latent_frames
from schemas.errors import DataError
from training.loading.teacher_grid import resample_teacher


def latent_times(num_latent: int) -> NDArray[np.float32]:
    """Mean picture of each latent frame: 0 alone, then 1 to 4, 5 to 8, ..."""
    return np.array([0.0, *(4.0 * index - 1.5 for index in range(1, num_latent))], np.float32)


def clock(times: list[float]) -> NDArray[np.float32]:
    """(T', 1, 1, 1) features that are the time of the cell, in pictures."""
    return np.array(times, np.float32).reshape(-1, 1, 1, 1)


def resampled_times(times: list[float], num_latent: int) -> NDArray[np.float32]:
    return resample_teacher(clock(times), (num_latent, 1, 1)).ravel()


@pytest.mark.parametrize("frames", [count for count in FRAME_COUNTS if count > 1])
@pytest.mark.parametrize("cells_per_frame", [1, 2, 4])
def test_cells_that_take_the_first_picture_alone_keep_their_time(frames: int, cells_per_frame: int) -> None:
    """Tubelets of two with the first picture alone (33 frames: 17), or one cell per picture."""
    num_latent = latent_frames(frames)
    length = 4 // cells_per_frame
    pictures = range(1, frames, length)
    times = [0.0, *(start + (length - 1) / 2 for start in pictures)]
    assert len(times) == cells_per_frame * (num_latent - 1) + 1
    np.testing.assert_allclose(resampled_times(times, num_latent), latent_times(num_latent), rtol=1e-6)


@pytest.mark.parametrize("num_latent", [1, 2, 9, 31])
def test_twice_as_many_cells_as_latent_frames_are_two_for_each(num_latent: int) -> None:
    """The first latent frame's two cells both show its one picture; 33 frames: 18."""
    times = [0.0, 0.0]
    for index in range(1, num_latent):
        times += [4 * index - 2.5, 4 * index - 0.5]
    np.testing.assert_allclose(resampled_times(times, num_latent), latent_times(num_latent), rtol=1e-6)


@pytest.mark.parametrize(("frames", "num_cells"), [(33, 16), (65, 32), (121, 60)])
def test_tubelets_from_picture_zero_are_cut_by_the_pictures_they_cover(frames: int, num_cells: int) -> None:
    """Pairs (0, 1), (2, 3), ...: latent frame 1 holds half of the first pair, two thirds would be another rule."""
    num_latent = latent_frames(frames)
    cells = np.eye(num_cells, dtype=np.float32).reshape(num_cells, 1, 1, num_cells)
    weights = resample_teacher(cells, (num_latent, 1, 1))[:, 0, 0]
    assert weights[0].nonzero()[0].tolist() == [0]  # picture 0 lies in the pair (0, 1)
    np.testing.assert_allclose(weights[1, :4], [0.25, 0.5, 0.25, 0.0])  # pictures 1; 2 and 3; 4
    np.testing.assert_allclose(weights[2, :6], [0.0, 0.0, 0.25, 0.5, 0.25, 0.0])
    np.testing.assert_allclose(weights[-1, -2:], [1 / 3, 2 / 3])  # the last picture was seen by no pair
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)


def test_other_counts_take_equal_shares_of_the_clip() -> None:
    times = [(index + 0.5) * 33 / 7 - 0.5 for index in range(7)]
    found = resampled_times(times, 9)
    assert (np.diff(found) >= 0).all()
    # A latent frame is never further from its time than half a cell.
    assert np.abs(found - latent_times(9)).max() <= 33 / 14 + 1e-4


def test_cells_that_saw_the_clip_whole_serve_all_frames() -> None:
    assert resampled_times([5.0], 9).tolist() == [5.0] * 9
    assert resampled_times([1.0, 2.0, 6.0], 1).tolist() == [3.0]


def test_rows_and_columns_keep_their_place() -> None:
    """The place of a cell in the picture, 0 to 1, away from the edges, where nothing lies beyond: exact, but to a tenth of a cell at odd ratios."""
    for old, new in (((6, 8), (3, 4)), ((3, 4), (6, 8)), ((16, 16), (9, 16)), ((5, 7), (5, 7))):
        down = (np.arange(old[0]) + 0.5)[:, None].repeat(old[1], axis=1) / old[0]
        across = (np.arange(old[1]) + 0.5)[None].repeat(old[0], axis=0) / old[1]
        features = np.stack([down, across], axis=-1)[None].astype(np.float32)
        found = resample_teacher(features, (1, *new))[0]
        for axis, size in enumerate(new):
            expected = (np.arange(size) + 0.5) / size
            places = found[:, new[1] // 2, 0] if axis == 0 else found[new[0] // 2, :, 1]
            tolerance = 0.1 / size if old[axis] > size and old[axis] % size else 1e-5
            np.testing.assert_allclose(places[1:-1], expected[1:-1], atol=tolerance)


@pytest.mark.parametrize("new", [(3, 5), (4, 6), (9, 4), (16, 16)])
def test_space_is_resampled_as_torch_does_it(new: tuple[int, int]) -> None:
    features = np.random.default_rng(0).standard_normal((2, 8, 10, 3)).astype(np.float32)
    maps = torch.from_numpy(features).permute(0, 3, 1, 2)
    expected = F.interpolate(maps, new, mode="bilinear", align_corners=False, antialias=True).permute(0, 2, 3, 1)
    np.testing.assert_allclose(resample_teacher(features, (2, *new)), expected.numpy(), atol=1e-5)


def test_features_on_the_token_grid_are_the_same_array() -> None:
    features = np.zeros((9, 2, 3, 4), np.float16)
    assert resample_teacher(features, (9, 2, 3)) is features
    assert resample_teacher(features, (9, 4, 6)).dtype == np.float16


@pytest.mark.parametrize("shape", [(9, 2, 3), (0, 2, 3, 4)])
def test_what_is_no_feature_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected \\(frames, rows, columns, channels\\)"):
        resample_teacher(np.zeros(shape, np.float16), (9, 2, 3))
