"""What a run needs, checked before it starts: CPUs, decoder, weights, disk, a write to the output; every lack at once, in words and numbers.

Phases that only read tables (match, decide, report) need no sources, so they run where the sources are gone. A match above
`match.frames_per_block` frames also uses workers of the engine, which this does not foresee. `--dry-run` ends here. Price: weights are hashed
once per command (about a second for the defaults).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curation.analysis.models import model_names
from curation.config import CurateConfig
from curation.engine import workers_for
from curation.objects import explain, is_url
from curation.places import open_place
from curation.ray_head import usable_cpus
from curation.sources import discover
from encoders.registry import Registry
from schemas.errors import ModelMissingError, PreflightError, ReelyardError

__all__ = ["Check", "needed_models", "preflight"]

PIPELINES = (("analyze",), ("match",), ("caption",), ("latents", "text"), ("pack",))
"""Stages that run at the same time."""
_WORK_PHASES = frozenset(("analyze", "caption", "encode", "pack"))
"""Phases that list the sources and run on workers."""
_WORK_BYTES_PER_SOURCE_BYTE = 0.5
_LEAST_FREE_BYTES = 500_000_000
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Check:
    """One line of the preflight."""

    name: str
    ok: bool
    text: str


def preflight(config: CurateConfig, phases: Sequence[str]) -> list[Check]:
    """Run every check; PreflightError lists all that failed."""
    checks = [_output(config)]
    if _WORK_PHASES & set(phases):
        requests, ignored = discover(config.sources, cache_dir=config.cache_path)
        sizes = [request.size_bytes for request in requests]
        checks = [_sources(sizes, ignored), *checks, _disk(config, sizes), *_cpus(config), *_memory(config), _decoder()]
    checks += _models(config, phases)
    if "caption" in phases and config.caption.captioner == "server":
        checks.append(_caption_server(config))
    failed = [check for check in checks if not check.ok]
    if failed:
        lines = "\n".join(f"  {check.name}: {check.text}" for check in failed)
        raise PreflightError(f"the run cannot start, {len(failed)} of {len(checks)} checks failed:\n{lines}")
    return checks


def needed_models(config: CurateConfig, phases: Sequence[str]) -> list[str]:
    """Registry names of the weights that these phases load."""
    names: list[str] = []
    if "analyze" in phases:
        names += model_names(config.analyze)
    if "caption" in phases and config.caption.captioner == "tags":
        names.append("teacher.efficientnet_lite0")
    if "encode" in phases:
        if config.encode.codec == "wan" and "path" not in config.encode.codec_options:
            names.append("latents.wan")
        teachers = {name for name in config.encode.teacher_by_branch.values() if name is not None}
        names += sorted(f"teacher.{name}" for name in teachers - set(config.encode.teacher_paths))
        if config.encode.image_encoder is not None and config.encode.image_path is None:
            names.append(f"image.{config.encode.image_encoder}")
        if config.encode.text_path is None:
            names.append(f"text.{config.encode.text_encoder}")
    return list(dict.fromkeys(names))


def _sources(sizes: Sequence[int], ignored: int) -> Check:
    return Check("sources", True, f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB ({ignored} other files left out)")


def _output(config: CurateConfig) -> Check:
    """A real write: permissions, read-only and full file systems all show."""
    place = open_place(config)
    try:
        place.probe()
    except OSError as error:
        why = explain(error) if is_url(place.address) else str(error.strerror)
        return Check("output", False, f"{place.address} cannot be written ({why}); give another `output`")
    return Check("output", True, place.address)


def _disk(config: CurateConfig, sizes: Sequence[int]) -> Check:
    far = is_url(config.output)
    wanted = config.scratch_path if far else config.output_path
    folder = next(path for path in (wanted, *wanted.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    work = max(sizes) * usable_cpus() if far else max(sizes) + _WORK_BYTES_PER_SOURCE_BYTE * sum(sizes)
    need = _LEAST_FREE_BYTES + work
    text = f"{free / 1e9:.2f} GB free in {folder}, about {need / 1e9:.2f} GB needed"
    return Check(
        "disk",
        free >= need,
        text if free >= need else f"{text}; free some, or give another `{'scratch' if far else 'output'}`",
    )


def _cpus(config: CurateConfig) -> list[Check]:
    """Whether one worker of each stage fits into a head of our own; a given cluster is asked when it is reached."""
    if config.ray.address is not None or "RAY_ADDRESS" in os.environ:
        return []
    cpus, gpus = float(config.ray.num_cpus or usable_cpus()), float(_gpus(config))
    checks = []
    for stages in PIPELINES:
        try:
            counts = workers_for({name: config.stage_resources(name) for name in stages}, cpus, gpus, 1 << 20)
        except PreflightError as error:
            checks.append(Check("cpus", False, str(error)))
        else:
            text = ", ".join(
                f"{name}: {count} x {config.stage_resources(name).cpus:g}" for name, count in counts.items()
            )
            checks.append(Check("cpus", True, f"{text} of {cpus:g}"))
    return checks


def _caption_server(config: CurateConfig) -> Check:
    """Whether the server lists the model and takes a picture."""
    from curation.captioning.probe import probe_server

    try:
        return Check("captions", True, probe_server(config.caption.server))
    except ReelyardError as error:
        return Check("captions", False, str(error))


def _gpus(config: CurateConfig) -> int:
    """GPUs of a head of our own: the config's, else the device files, unless CUDA_VISIBLE_DEVICES names fewer."""
    if config.ray.num_gpus is not None:
        return config.ray.num_gpus
    present = len([path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if visible is None else min(present, len([name for name in visible.split(",") if name.strip()]))


def _memory(config: CurateConfig) -> list[Check]:
    """What the children of a phase may use at most, against this machine; a warning, because most use much less."""
    if config.ray.address is not None or "RAY_ADDRESS" in os.environ:
        return []
    cpus, gpus = float(config.ray.num_cpus or usable_cpus()), float(_gpus(config))
    have_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MEBIBYTE
    most = 0
    for stages in PIPELINES:
        with contextlib.suppress(PreflightError):  # the line of the CPUs says so
            counts = workers_for({name: config.stage_resources(name) for name in stages}, cpus, gpus, 1 << 20)
            most = max(most, sum(counts.values()))
    each = config.sandbox.memory_mb
    text = f"{most} workers at once x {each} MiB (sandbox.memory_mb) = {most * each} MiB at most, the machine has {have_mb} MiB"
    if most * each > have_mb:
        text = f"warning: {text}; if they all reach their limit, the kernel ends processes: lower the limit or ray.<stage>.workers"
    return [Check("memory", True, text)]


def _decoder() -> Check:
    """The libraries that decode come inside the wheel of PyAV; no ffmpeg binary is called."""
    import av

    if "h264" not in av.codecs_available:
        return Check("decoder", False, f"PyAV {av.__version__} decodes no h264; install the PyPI wheel of `av`")
    return Check("decoder", True, f"PyAV {av.__version__}")


def _models(config: CurateConfig, phases: Sequence[str]) -> list[Check]:
    """Weights present and whole; those whose licence the config accepts are pulled here."""
    registry = Registry(cache_dir=config.cache_path)
    checks = []
    for name in needed_models(config, phases):
        try:
            if name in config.models.accept_licences:
                registry.fetch(name, accept_licence=True)
            path = registry.local_path(name)
            checks.append(Check("weights", True, f"{name} at {path}"))
        except (ModelMissingError, ReelyardError) as error:
            checks.append(Check("weights", False, str(error)))
    return checks
