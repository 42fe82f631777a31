"""The model's shape: exact parameter counts, FLOPs against independent arithmetic, and the command shell."""

from __future__ import annotations

import pytest
import typer

from schemas.command import progress, run_command
from schemas.config import build_config
from schemas.errors import ConfigError, DataError, UsageError
from schemas.model_shape import MOTIF_2B, TINY, ModelShape, token_grid


def test_parameter_counts_of_the_released_model() -> None:
    assert MOTIF_2B.parameter_count() == 1_962_308_032
    assert MOTIF_2B.model_copy(update={"sca_query_norm": False}).parameter_count() == 1_962_258_880
    assert MOTIF_2B.model_copy(update={"shared_cross_attention": False}).parameter_count() == 1_886_712_256


def test_full_size_forward_is_5_petaflops_with_half_in_the_decoder() -> None:
    """Research figure for 720p x 121 frames: 5.1 P forward, decoder 52 %, of which half of the decoder's last block is never computed."""
    flops = MOTIF_2B.forward_flops(114_080, 512)
    unread = flops.decoder / (2 * MOTIF_2B.decoder_blocks - 1)
    assert flops.total + unread == pytest.approx(5.1e15, rel=0.02)
    assert (flops.decoder + unread) / (flops.total + unread) == pytest.approx(0.52, abs=0.01)


def test_route_lowers_only_the_routed_blocks() -> None:
    dense = TINY.forward_flops(1000, 64)
    routed = TINY.forward_flops(1000, 64, route=(1, 3, 0.5))
    assert routed.decoder == dense.decoder and routed.embedders == dense.embedders
    assert routed.dual < dense.dual and routed.single < dense.single
    assert TINY.forward_flops(1000, 64, route=(1, 3, 0.0)) == dense


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="rope_axes"):
        build_config(ModelShape, {"rope_axes": [16, 56, 54]}, source="x")
    with pytest.raises(ConfigError, match="heads 11"):
        build_config(ModelShape, {"heads": 11}, source="x")


def test_token_grid() -> None:
    assert token_grid(31, 92, 160) == (31, 46, 80)
    with pytest.raises(ValueError, match="multiples"):
        token_grid(31, 91, 160)


def app_that(action: Exception | None) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def work(count: int = 1) -> None:
        if action is not None:
            raise action

    return app


@pytest.mark.parametrize(("action", "code"), [(None, 0), (DataError("a.tar: cut"), 1), (UsageError("no such lane"), 2)])
def test_exit_codes_and_one_message(action: Exception | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app_that(action), []) == code
    captured = capsys.readouterr().err
    assert ("Traceback" not in captured) and (action is None or f"error: {action}" in captured)


def test_a_bad_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(app_that(None), ["--count", "many"]) == 2
    assert "count" in capsys.readouterr().err


def test_progress_passes_everything_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], what="clips")) == [1, 2, 3]
    assert "clips: 3 done" in capsys.readouterr().err


def test_a_part_that_was_done_at_once_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2], what="parts", is_part=True)) == [1, 2]
    assert capsys.readouterr().err == ""
