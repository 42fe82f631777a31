"""What all tests share: property tests without clocks, because the machines that run them are busy ones; a small open_clip checkpoint; a browser."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("reelyard", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("reelyard")

_TINY_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_clip(seed=0)`: a folder with open_clip's real classes, 32 wide, and seeded random weights."""
    made: dict[int, Path] = {}

    def make(seed: int = 0) -> Path:
        import torch
        from open_clip.model import CLIP
        from safetensors.torch import save_file

        if seed in made:
            return made[seed]
        folder = tmp_path_factory.mktemp(f"tiny_clip_{seed}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = CLIP(**_TINY_CLIP)
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_file(weights, folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": _TINY_CLIP}), encoding="utf-8")
        made[seed] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_models() -> ModuleType:
    """`tests/tiny_models.py`, which is no package member in importlib mode."""
    spec = importlib.util.spec_from_file_location("tiny_models", Path(__file__).parent / "tiny_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-quic",
)
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000")


@pytest.fixture
def open_page(tmp_path: Path) -> Callable[[Path], AbstractContextManager[Any]]:
    """`with open_page(path) as driver`: a Selenium driver of headless Chromium with a local page loaded.

    The pages are opened as files, so there is no server and no network. A missing browser fails the test with what to install.
    """

    @contextmanager
    def opened(path: Path) -> Iterator[Any]:
        from selenium import webdriver

        binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        driver_binary = shutil.which("chromedriver")
        assert binary and driver_binary, "no Chromium here: run `make browser` (Debian: chromium, chromium-driver)"
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (*_FLAGS, *_QUIET, f"--user-data-dir={tmp_path / 'browser'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver_binary))
        try:
            driver.set_page_load_timeout(60)
            driver.get(path.as_uri())
            yield driver
        finally:
            driver.quit()

    return opened
