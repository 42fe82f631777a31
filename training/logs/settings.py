"""Where a run's numbers go. `metrics.jsonl` is always written; none of it touches the training, and all may change when a run is continued."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from schemas.config import StrictConfig
from schemas.errors import ConfigError

__all__ = ["LoggingConfig", "WandbConfig", "check_installed"]


class WandbConfig(StrictConfig):
    """Weights & Biases; `pip install wandb`, and `wandb login` once for online."""

    project: str = Field(min_length=1)
    name: str | None = None
    """Of the run; null takes the name of the run's folder."""
    entity: str | None = None
    """User or team; null takes the account's own."""
    mode: Literal["online", "offline"] = "online"
    """offline writes into the run's folder; `wandb sync` uploads it later."""


class LoggingConfig(StrictConfig):
    """Beside `metrics.jsonl`."""

    tensorboard: bool = True
    """Event files in `RUN/tensorboard`."""
    wandb: WandbConfig | None = None
    """null: nothing is sent anywhere."""


def check_installed(config: LoggingConfig) -> None:
    """Whether the packages that are asked for are there.

    Raises:
        ConfigError: naming the key, the package and how to do without.
    """
    wanted = {"logging.tensorboard": ("tensorboard", config.tensorboard, "false")}
    wanted["logging.wandb"] = ("wandb", config.wandb is not None, "null")
    for key, (package, asked, off) in wanted.items():
        if asked and find_spec(package) is None:
            raise ConfigError(
                f"{key} is on, but the package {package} is not installed; `pip install {package}`, or --set {key}={off}"
            )
