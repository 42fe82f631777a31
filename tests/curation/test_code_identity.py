"""Whose code decides a unit's key: every module that computes something of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from curation import caption, model_identity
from curation.analysis import models as analysis
from curation.analysis.settings import AnalyzeSettings
from curation.captioning.settings import ServerSettings
from curation.encoding import text
from curation.encoding import worker as encoding
from curation.encoding.settings import EncodeSettings

_ANALYSIS = sorted(path.stem for path in Path(analysis.__file__).parent.glob("*.py") if path.stem != "__init__")
_READING = ("decode", "frames", "image_reader", "pictures", "video_reader")
_CASES: list[tuple[object, str]] = [(owner, f"curation.{name}") for owner in (analysis, encoding) for name in _READING]
_CASES += [*((analysis, f"curation.analysis.{name}") for name in _ANALYSIS)]
_CASES += [(encoding, f"curation.{name}") for name in ("encoding.pixels", "encoding.worker")]
_CASES += [(text, "curation.encoding.text")]
_CASES += [(caption, f"curation.captioning.{name}") for name in ("answer", "frames", "prompt")]
_SERVER = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
_FINGERPRINTS: dict[str, Callable[[], str]] = {
    caption.__name__: lambda: caption.caption_fingerprint(
        caption.CaptionSettings(captioner="server", server=ServerSettings(**_SERVER))
    ),
    analysis.__name__: lambda: analysis.analysis_fingerprint(AnalyzeSettings()),
    encoding.__name__: lambda: encoding.encoding_fingerprint(EncodeSettings(), "144p", "video_real"),
    text.__name__: lambda: text.text_fingerprint(EncodeSettings()),
}


@pytest.mark.parametrize(("owner", "changed"), _CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_changed_module_changes_the_key(owner: object, changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = _FINGERPRINTS[owner.__name__]  # type: ignore[attr-defined]
    before = compute()

    def edited(modules: Sequence[str]) -> dict[str, str]:
        found = model_identity.code_identity(modules)
        return {name: "edited" if name == changed else digest for name, digest in found.items()}

    monkeypatch.setattr(owner, "code_identity", edited)
    assert compute() != before
