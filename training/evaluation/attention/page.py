"""The attention report as one self-contained HTML page: a bar per block, a frame-to-frame map per block, and every number in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from training.pages.markup import details, fact, facts, legend, note, page, percent, table
from training.pages.svg import Bar, heat_map, shade_scale, stacked_bars

__all__ = ["headline", "render_attention"]

_OTHER, _OTHER_ENCODER = "#2f6690", "#81b1d1"
_OWN, _OWN_ENCODER = "#c3ccd3", "#dfe4e8"
_TEXT, _IMAGE = "#ee8866", "#ddbb44"


def headline(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Inter-frame share of the video mass, averaged over blocks and times: encoder blocks, decoder blocks, and even attention."""

    def mean(wanted: bool) -> float | None:
        found = [
            block["inter_frame_of_video"]
            for time in report["times"]
            for block in time["blocks"]
            if (block["kind"] == "decoder") == wanted
        ]
        return fmean(found) if found else None

    return {"encoder": mean(False), "decoder": mean(True), "even": report["even_inter_frame_of_video"]}


def render_attention(report: Mapping[str, Any]) -> str:
    """The page of a report that `attention_report.measure_attention` made."""
    shares = headline(report)
    about = (
        f"run {report['run']}, {report['checkpoint']} ({report['weights']}); {len(report['clips'])} clips of set {report['set']}, "
        f"bucket {report['bucket']}: {report['latent_frames']} latent frames of {report['tokens_per_frame']} tokens; seed {report['seed']}"
    )
    parts = [
        facts(
            [
                *(
                    fact(
                        "none" if (share := shares[kind]) is None else percent(share),
                        f"{kind} blocks",
                        "of video mass to other frames",
                    )
                    for kind in ("encoder", "decoder")
                ),
                fact(
                    percent(report["even_inter_frame_of_video"]),
                    "even attention",
                    f"(T - 1) / T, T = {report['latent_frames']}",
                ),
            ]
        ),
        "<h2>Where video queries look, block by block</h2>",
        legend(
            [
                (_OTHER, "other frames (in the decoder: of its own half)"),
                (_OTHER_ENCODER, "other frames of the encoder half"),
                (_OWN, "own frame"),
                (_OWN_ENCODER, "own frame of the encoder half"),
                (_TEXT, "text"),
                (_IMAGE, "image tokens"),
            ]
        ),
        f"<div class='wide'>{''.join(_bars(time) for time in report['times'])}</div>",
        note(
            "A bar is all attention mass of a block's video queries, mean over queries, heads and clips. Circles: inter-frame share of each head. "
            "Upright line: inter-frame share of attention that looks everywhere alike."
        ),
        "<h2>Frame to frame</h2>",
        note(
            "Rows: frame of the query, first frame on top. Columns: frame of the key. Mean over heads and clips, shares of all mass, one scale for "
            "all maps. A diagonal: frames look at themselves. Decoder blocks have two maps: keys of the decoder half, then of the encoder half."
        ),
        shade_scale(),
        *(_maps(time) for time in report["times"]),
        "<h2>Numbers</h2>",
        *(details(f"s = {time['sigma']:g}", _table(time)) for time in report["times"]),
        details("clips", note(", ".join(report["clips"]))),
    ]
    return page(f"Attention between frames: {report['run']}", about, parts)


def _bars(time: Mapping[str, Any]) -> str:
    return stacked_bars([_bar(block) for block in time["blocks"]], title=f"s = {time['sigma']:g}")


def _bar(block: Mapping[str, Any]) -> Bar:
    if block["kind"] == "decoder":
        to = block["halves"]["decoder_queries"]
        own, encoder = to["to_decoder_half"], to["to_encoder_half"]
        parts = (
            (_OTHER, own["inter_frame_share"]),
            (_OTHER_ENCODER, encoder["inter_frame_share"]),
            (_OWN, own["own_frame_share"]),
            (_OWN_ENCODER, encoder["own_frame_share"]),
        )
    else:
        parts = (
            (_OTHER, block["inter_frame_share"]),
            (_OWN, block["own_frame_share"]),
            (_TEXT, block["text_share"]),
            (_IMAGE, block["image_share"]),
        )
    return Bar(
        label=block["name"],
        parts=parts,
        marks=tuple(block["inter_frame_share_by_head"]),
        line=block["even_inter_frame_share"],
        title=f"{block['name']}: other frames {percent(block['inter_frame_share'])}, own frame {percent(block['own_frame_share'])}, "
        f"text {percent(block['text_share'])}, image {percent(block['image_share'])}",
    )


def _maps(time: Mapping[str, Any]) -> str:
    encoder = [
        _figure(block["name"], _share_words(block), [block["frames"]])
        for block in time["blocks"]
        if block["kind"] != "decoder"
    ]
    decoder = [
        _figure(block["name"], _share_words(block), _half_maps(block, "decoder_queries"))
        for block in time["blocks"]
        if block["kind"] == "decoder"
    ]
    from_encoder = [
        _figure(block["name"], "queries of the encoder half", _half_maps(block, "encoder_queries"))
        for block in time["blocks"]
        if block["kind"] == "decoder" and "encoder_queries" in block["halves"]
    ]
    parts = [f"<h3>s = {time['sigma']:g}, encoder</h3><div class='maps'>{''.join(encoder)}</div>"]
    if decoder:
        parts.append(f"<h3>s = {time['sigma']:g}, decoder</h3><div class='maps'>{''.join(decoder)}</div>")
    if from_encoder:
        parts.append(
            details("the decoder's encoder half as queries", f"<div class='maps'>{''.join(from_encoder)}</div>")
        )
    return "".join(parts)


def _half_maps(block: Mapping[str, Any], queries: str) -> list[Sequence[Sequence[float]]]:
    return [block["halves"][queries][f"to_{half}_half"]["frames"] for half in ("decoder", "encoder")]


def _figure(name: str, words: str, maps: Sequence[Sequence[Sequence[float]]]) -> str:
    titles = (
        [f"{name}: {words}"]
        if len(maps) == 1
        else [f"{name}, keys of the {half} half" for half in ("decoder", "encoder")]
    )
    pictures = " ".join(heat_map(values, title=title) for values, title in zip(maps, titles, strict=True))
    return f"<figure><figcaption>{escape(name)} <span>{escape(words)}</span></figcaption>{pictures}</figure>"


def _share_words(block: Mapping[str, Any]) -> str:
    return f"{percent(block['inter_frame_share'])} other"


def _table(time: Mapping[str, Any]) -> str:
    head = [
        "block",
        "other frames",
        "of video mass",
        "even",
        "std over clips",
        "least head",
        "most head",
        "own frame",
        "text",
        "image",
    ]
    rows = [
        [
            block["name"],
            *(percent(block[key]) for key in ("inter_frame_share", "inter_frame_of_video", "even_inter_frame_share")),
            percent(block["inter_frame_share_std_over_clips"]),
            percent(min(block["inter_frame_share_by_head"])),
            percent(max(block["inter_frame_share_by_head"])),
            *(percent(block[key]) for key in ("own_frame_share", "text_share", "image_share")),
        ]
        for block in time["blocks"]
    ]
    return table(head, rows)
