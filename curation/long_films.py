"""Long films of the analyze phase: their pieces as units of their own, so that all workers share one film.

Three rounds: how many pieces a large file has (asked of a worker, since opening a file can crash), then the pieces, then one merge per film here.
What comes out equals what one worker alone would have written, so whether a film goes this way is a question of size and of nothing
else. Price: a round of workers more when there are large files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curation import pipeline
from curation.analysis.pieces import merge_pieces
from curation.commits import DONE
from curation.requests import SourceRequest
from curation.session import Session
from schemas.ids import fingerprint

__all__ = ["analyze_long_films"]

_PLANS = "plans"
_PIECES = "pieces"


def analyze_long_films(session: Session, requests: Sequence[SourceRequest]) -> None:
    """Commit the analysis of those of `requests` that have more than one piece; the others are left as they are."""
    store, key_of = session.commits, session.inventory.key_of
    least = session.config.ray.split_from_mb
    large = [
        request
        for request in requests
        if least is not None and request.kind == "video" and request.size_bytes >= least * 1e6
    ]
    plans = [
        _unit(session, request, key_of[request.uri], {"plan": True}, f"{request.uri} length", 1) for request in large
    ]
    _work(session, _PLANS, plans)
    films = {request.uri: _pieces_of(session, key_of[request.uri]) for request in large}
    cut = [request for request in large if films[request.uri] > 1]
    pieces = []
    for request in cut:
        count = films[request.uri]
        for index, key in enumerate(_piece_keys(key_of[request.uri], count)):
            label = f"{request.uri} piece {index + 1} of {count}"
            pieces.append(
                _unit(session, request, key, {"index": index, "count": count}, label, request.size_bytes // count)
            )
    _work(session, _PIECES, pieces)
    for request in cut:
        key = key_of[request.uri]
        keys = _piece_keys(key, films[request.uri])
        with store.unit("analyze", key, {"status": DONE, "reason": None, "answer": None}) as folder:
            merge_pieces(request, [_result(session, piece) for piece in keys], session.config.analyze, folder)
        for piece in keys:
            store.forget(_PIECES, piece)
        store.forget(_PLANS, key)
    store.refresh()


def _unit(
    session: Session, request: SourceRequest, key: str, more: dict[str, Any], label: str, weight: int
) -> dict[str, Any]:
    arguments = {"request": request.to_json(), **more}
    part = {"unit": key, "arguments": arguments, "timeout_s": session.timeout_s(request.size_bytes), "weight": weight}
    return {"label": label, "parts": {"analyze": part}, "results": {}}


def _work(session: Session, group: str, units: Sequence[dict[str, Any]]) -> None:
    store = session.commits
    wanted = [unit for unit in units if not store.is_committed(group, unit["parts"]["analyze"]["unit"])]
    session.work("analyze", wanted, lambda workers: pipeline.analyze_stages(session, workers, group=group), ["analyze"])


def _pieces_of(session: Session, key: str) -> int:
    """1 for a file that no worker could open: analysing it whole says why."""
    record = session.commits.record(_PLANS, key)
    return int(record["answer"]["pieces"]) if record["status"] == DONE else 1


def _piece_keys(key: str, count: int) -> list[str]:
    return [fingerprint([key, index, count], length=32) for index in range(count)]


def _result(session: Session, key: str) -> Path | str:
    """The folder of a piece, or why there is none."""
    record = session.commits.record(_PIECES, key)
    return session.commits.folder(_PIECES, key) if record["status"] == DONE else str(record["reason"])
