"""Hostile inputs, made once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from encoders.registry import fetch


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def hostile_cases() -> ModuleType:
    """`hostile_cases.py`, which is no package member in importlib mode."""
    return _module("hostile_cases")


@pytest.fixture(scope="session")
def hostile_folder(
    hostile_cases: ModuleType, media_cases: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Every case as a file in one folder."""
    work, folder = tmp_path_factory.mktemp("material"), tmp_path_factory.mktemp("hostile")
    bunny = fetch("media.bigbuckbunny")
    media_cases.trimmed(bunny, work / "short.whole.mp4", seconds=2.5)
    media_cases.encode(_input(work / "short.whole.mp4"), work / "short.mp4", movflags="+faststart")
    media_cases.joined_clips([bunny, fetch("media.bikes"), fetch("media.carphone")], work / "long.whole.mp4")
    media_cases.encode(_input(work / "long.whole.mp4"), work / "long.mp4", movflags="+faststart", g=24)
    material = hostile_cases.Material(work / "short.mp4", work / "long.mp4", fetch("media.china"), media_cases)
    hostile_cases.make_all(folder, material)
    return folder


def _input(path: Path):
    import ffmpeg

    return ffmpeg.input(f"file:{path}").video
