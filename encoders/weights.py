"""Folders of weights in the `transformers` / `diffusers` layout: from a path, from the registry or from the hub, with one hash of their files.

The hash is of contents, so that a fingerprint survives a move and changes with the weights. Price: every file is read once when an encoder opens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encoders.registry import Registry
from schemas.errors import DataError, ModelMissingError
from schemas.ids import content_hash, fingerprint

__all__ = ["hash_folder", "load_network", "part_of", "quiet_loading", "resolve_folder", "revision_of"]

_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")


def resolve_folder(
    path: str | Path | None, *, default: str, registry: Registry | None = None, revision: str | None = None
) -> Path:
    """The local folder of `path`: itself, a hub id `owner/name` or `owner/name@revision`, or, for None, the registry's entry `default`.

    Raises:
        ModelMissingError: not on this machine, or the hub did not deliver it.
    """
    if path is None:
        return (registry or Registry()).local_path(default)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    text = str(path)
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise ModelMissingError(f"model folder {text} does not exist; give an existing folder or a hub id owner/name")
    try:
        from huggingface_hub import snapshot_download

        name, _, pinned = text.partition("@")
        return Path(snapshot_download(name, revision=pinned or revision, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # the client raises its own, httpx's and OS errors; all mean the same here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelMissingError(
            f"model {text} is no folder here and the hub did not deliver it: {reason}; copy it to a folder and give its path"
        ) from error


def hash_folder(folder: Path) -> str:
    """One hash of every config, tokenizer and safetensors file of a folder, by name and content."""
    hashes = {}
    for pattern in _PATTERNS:
        for file in sorted(folder.glob(pattern)):
            with file.open("rb") as stream:
                hashes[file.name] = content_hash(stream)
    if not any(name.endswith(".safetensors") for name in hashes):
        raise ModelMissingError(f"model folder {folder} holds no .safetensors file; pickled weights are not read")
    return fingerprint(hashes)


def part_of(folder: Path, part: str) -> Path:
    """`folder`, or its subfolder `part` where the folder is a whole pipeline, as the hub lays them out."""
    return folder / part if not (folder / "config.json").is_file() and (folder / part).is_dir() else folder


def revision_of(folder: Path) -> str:
    """What to write down as the revision of a folder: the hub's commit where it is a snapshot, else the hash of its files."""
    return folder.name if folder.parent.name == "snapshots" else f"sha256:{hash_folder(folder)}"


def load_network(loader: Any, folder: Path, *, unused: tuple[str, ...] = ()) -> Any:
    """`loader.from_pretrained` of local safetensors in float32.

    Raises:
        DataError: weights are missing, those under the prefixes `unused` apart; they would be drawn at random.
    """
    with quiet_loading():
        network, report = loader.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(unused))
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}; copy the model again"
        )
    return network


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar and no load report of `transformers`: a dozen workers would each draw one, and missing keys are checked by us."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
