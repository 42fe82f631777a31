"""The caption stage: a task is a batch of sources, a unit is one of them, and each is committed as soon as its attempt ends.

When a batch fails, what it finished is kept and the rest is tried again; when it fails for good, each source left is tried alone, so that a file
that kills the decoder takes no caption from another one. Price: the sources of a bad batch are decoded again, one worker each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from curation.captioning.worker import FINISHED
from curation.commits import DONE, QUARANTINED, CommitStore
from curation.stages import STOPPED, WorkerStage

__all__ = ["CaptionStage"]

Part = dict[str, Any]
"""`arguments["members"]`: unit, analysis, path, clip_ids, label, timeout_s of each source."""


class CaptionStage(WorkerStage):
    """Captions of the clips of some sources; the child writes a folder for each that is finished."""

    name = "caption"

    def _run(self, part: Part) -> dict[str, Any]:
        result = super()._run(part)
        if result["status"] != QUARANTINED or len(part["arguments"]["members"]) == 1:
            return result
        store = self.open_store()
        results = [super(CaptionStage, self)._run(_alone(member)) for member in self._open(store, part)]
        worst = (STOPPED, QUARANTINED, DONE)
        return min(results, key=lambda found: worst.index(found["status"]))

    def _attempt(self, store: CommitStore, part: Part) -> None:
        members = self._open(store, part)
        if members:
            super()._attempt(store, {**part, "arguments": {**part["arguments"], "members": members}})

    def _open(self, store: CommitStore, part: Part) -> list[dict[str, Any]]:
        members: list[dict[str, Any]] = part["arguments"]["members"]
        return [member for member in members if not store.is_committed(self.spec.group, member["unit"])]

    def publish(self, store: CommitStore, part: Part, work: Path, answer: Any) -> None:
        self.salvage(store, part, work)
        left = self._open(store, part)
        assert not left, f"the child ended without the captions of {[member['label'] for member in left]}"

    def salvage(self, store: CommitStore, part: Part, work: Path) -> None:
        for member in part["arguments"]["members"]:
            source = work / member["unit"]
            if not (source / FINISHED).is_file():
                continue
            answer = json.loads((source / FINISHED).read_text(encoding="utf-8"))
            record = {"status": DONE, "reason": None, "answer": answer}
            with store.unit(self.spec.group, member["unit"], record) as folder:
                os.rename(source / "labels.parquet", folder / "labels.parquet")

    def quarantine(self, store: CommitStore, part: Part, reason: str) -> None:
        """A source alone is at fault; of a batch nobody is, yet."""
        if len(part["arguments"]["members"]) == 1:
            with store.unit(self.spec.group, part["unit"], {"status": QUARANTINED, "reason": reason, "answer": None}):
                pass


def _alone(member: dict[str, Any]) -> Part:
    return {"unit": member["unit"], "arguments": {"members": [member]}, "timeout_s": member["timeout_s"]}
