"""The measurements of `lengths.py` as one self-contained HTML page: a table, and a picture for each measure against the frame number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluation.drift import MEASURES
from training.pages.markup import details, legend, note, page, table
from training.pages.svg import HUES, Curve, curves

__all__ = ["render_lengths"]

_WHAT = {
    "brightness": "mean luma, 0 to 255",
    "contrast": "standard deviation of the luma",
    "sharpness": "mean length of the luma's gradient",
    "colour": "mean distance of R, G and B from the luma",
    "change": "mean absolute difference of the luma to the frame before",
}


def render_lengths(report: Mapping[str, Any]) -> str:
    """The page of a report that `lengths.measure_lengths` made."""
    reference, window = report["reference_frames"], report["window_frames"]
    names = [(HUES[index % len(HUES)], f"{one['frames']} frames") for index, one in enumerate(report["lengths"])]
    about = (
        f"run {report['run']}, {report['checkpoint']} ({report['weights']}), on {report['device']}; {len(report['prompts'])} prompts, "
        f"seed {report['seed']}, {report['sampler']['num_steps']} steps of {report['sampler']['solver']}"
    )
    parts = [
        "<h2>Time, memory, and the end of the video beside its beginning</h2>",
        table(
            [
                "frames",
                "video tokens",
                "s a step",
                "decoding, s",
                "peak GB",
                "TFLOPs a pass",
                *MEASURES,
                "latent distance",
            ],
            [_row(one) for one in report["lengths"]],
        ),
        note(
            f"Each measure: mean of the last {window} frames over mean of the first {window}. Latent distance: mean at the end; 1 is a usual frame "
            f"of {reference} frames, the length that the others are compared with. Peak: weights and all, of the process on a CPU, of the "
            "allocator on a GPU."
        ),
        legend(names),
        "<h2>Latent distance</h2>",
        note(
            f"How far each latent frame's channel means and deviations are from those of the {reference}-frame videos, "
            "in units of their own deviation."
        ),
        _picture(report, "latent_distance", "latent frame", "distance"),
        "<h2>Pictures</h2>",
    ]
    for name in MEASURES:
        parts += [f"<h3>{name}</h3>", note(_WHAT[name]), _picture(report, name, "frame", name)]
    parts.append(details("Prompts", table(["prompt"], [[prompt] for prompt in report["prompts"]])))
    return page("Lengths beyond training", about, parts)


def _row(one: Mapping[str, Any]) -> list[str]:
    return [
        str(one["frames"]),
        f"{one['video_tokens']:,}",
        f"{one['seconds_per_step']:.3g}",
        f"{one['decode_seconds']:.3g}",
        "-" if one["sample_bytes"] is None else f"{one['sample_bytes'] / 1e9:.2f}",
        f"{one['forward_tflops']:.3g}",
        *("-" if one["drift"][name] is None else f"{one['drift'][name]:.2f}x" for name in MEASURES),
        f"{one['latent_distance_at_end']:.2f}",
    ]


def _picture(report: Mapping[str, Any], name: str, x_name: str, y_name: str) -> str:
    """A curve for each length; the longest is drawn first, so that the reference lies on top."""
    lines = [
        Curve(
            name=f"{one['frames']} frames",
            colour=HUES[index % len(HUES)],
            points=tuple((float(x), y) for x, y in enumerate(one["curves"][name]) if y is not None),
        )
        for index, one in enumerate(report["lengths"])
    ]
    return f"<div class='wide'>{curves(lines[::-1], x_name=x_name, y_name=y_name, height=240)}</div>"
