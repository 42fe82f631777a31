"""The files of an answer: JSON for other programs, a page for people. Written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from schemas.files import said_if_unwritten, write_bytes, write_json
from training.whatwas.answer import Answer
from training.whatwas.page import render_page
from training.whatwas.run_folder import RunFolder
from training.whatwas.thumbnails import PicturesOf, clip_pictures

__all__ = ["write_answer"]


def write_answer(
    run: RunFolder,
    answer: Answer,
    *,
    json_file: Path | None,
    html_file: Path | None,
    show: PicturesOf,
    codec_path: Path | None,
) -> list[str]:
    """Write what was asked for; what is to be said about it."""
    said = []
    if json_file is not None:
        with said_if_unwritten(json_file):
            write_json(json_file, answer.as_json())
        said.append(f"values: {json_file}")
    if html_file is not None:
        pictures = clip_pictures(run, answer.records, show=show, codec_path=codec_path)
        said += pictures.notes
        with said_if_unwritten(html_file):
            write_bytes(html_file, render_page(answer, pictures).encode())
        said.append(f"page: {html_file}; open it in a browser, it needs no network")
    return said
