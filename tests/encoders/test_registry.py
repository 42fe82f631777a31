"""The registry: checked by sha256, licences asked for, whole files or nothing, safe with two processes, no path from an archive."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from encoders import sources
from encoders.registry import LicenceNotAcceptedError, Registry, default_cache_dir, list_models
from encoders.sources import Downloads, HubSource, SourceError, WheelSource
from schemas.errors import ConfigError, DataError, ModelMissingError


def registry_file(folder: Path, name: str, body: str) -> Path:
    path = folder / f"{name.replace('.', '-')}.toml"
    path.write_text(
        f'[{name}]\npurpose = "a test file"\nlicence_code = "MIT"\nlicence_weights = "MIT"\n{body}\n', encoding="utf-8"
    )
    return path


def path_entry(folder: Path, data: bytes, *, sha256: str | None = None, open_: bool = True) -> Path:
    """A registry file with one entry `test.blob`, whose source is a file with `data`."""
    (folder / "origin").mkdir(exist_ok=True)
    (folder / "origin" / "blob.bin").write_bytes(data)
    digest = sha256 or hashlib.sha256(data).hexdigest()
    return registry_file(
        folder,
        "test.blob",
        f'open = {str(open_).lower()}\nfiles = [{{ name = "blob.bin", sha256 = "{digest}" }}]\n'
        f'sources = [{{ kind = "path", root = "{folder / "origin"}" }}]',
    )


def no_files(cache: Path) -> bool:
    return not [path for path in cache.rglob("*") if path.is_file() and not path.name.startswith(".tmp-lock-")]


def test_shipped_entries_are_complete() -> None:
    names = {entry.name for entry in list_models()}
    assert {"nsfw.opennsfw", "copies.sscd", "text.minilm", "latents.wan", "media.bikes", "media.chelsea"} <= names
    for entry in list_models():
        assert entry.purpose and entry.licence_code and entry.licence_weights
        if isinstance(entry.sources[0], WheelSource):
            assert all(file.sha256 and file.bytes for file in entry.files), entry.name
    closed = {entry.name for entry in list_models() if not entry.open}
    assert {"copies.sscd", "copies.sscd_distilled"} <= closed


def test_weights_of_the_wheels_have_the_registered_hashes(registry: Registry) -> None:
    path = registry.fetch("text.minilm")
    assert path.is_dir() and (path / "config.json").is_file()
    assert {status.state for status in registry.verify("text.minilm")} == {"ok"}
    nsfw = registry.fetch("nsfw.opennsfw")
    assert hashlib.sha256(nsfw.read_bytes()).hexdigest() == registry.entry("nsfw.opennsfw").files[0].sha256


def test_fetch_then_local_path(tmp_path: Path) -> None:
    registry = Registry(cache_dir=tmp_path / "cache", extra=[path_entry(tmp_path, b"weights")])
    with pytest.raises(ModelMissingError, match=r"missing; run `reelyard-curate models pull test\.blob`"):
        registry.local_path("test.blob")
    assert registry.fetch("test.blob").read_bytes() == b"weights"
    shutil.rmtree(tmp_path / "origin")
    assert registry.fetch("test.blob") == registry.local_path("test.blob")


def test_wrong_sha256_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    registry = Registry(cache_dir=tmp_path / "cache", extra=[path_entry(tmp_path, b"weights", sha256="0" * 64)])
    with pytest.raises(DataError, match=r"blob\.bin from path .* has sha256 .*, expected 0000"):
        registry.fetch("test.blob")
    assert no_files(tmp_path / "cache")


def test_a_damaged_cache_is_seen_and_repaired(tmp_path: Path) -> None:
    registry = Registry(cache_dir=tmp_path / "cache", extra=[path_entry(tmp_path, b"weights")])
    path = registry.fetch("test.blob")
    path.write_bytes(b"weighty")
    os.utime(path, ns=(1, 1))
    assert [status.state for status in registry.verify("test.blob")] == ["damaged"]
    with pytest.raises(ModelMissingError, match="damaged"):
        registry.local_path("test.blob")
    assert registry.fetch("test.blob").read_bytes() == b"weights"


def test_closed_licence_is_shown_and_refused_until_accepted(tmp_path: Path) -> None:
    registry = Registry(cache_dir=tmp_path / "cache", extra=[path_entry(tmp_path, b"weights", open_=False)])
    with pytest.raises(LicenceNotAcceptedError, match=r"models pull test\.blob --accept"):
        registry.fetch("test.blob")
    assert no_files(tmp_path / "cache")
    assert registry.fetch("test.blob", accept_licence=True).is_file()
    assert registry.fetch("test.blob").is_file()


def test_both_statements_about_sscd_are_shown(tmp_path: Path) -> None:
    with pytest.raises(LicenceNotAcceptedError) as caught:
        Registry(cache_dir=tmp_path).fetch("copies.sscd")
    message = str(caught.value)
    assert "unmodified form" in message and "MIT" in message and "CC-BY-NC" in message


def test_without_a_registered_hash_the_first_download_binds(tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin" / "blob.bin").write_bytes(b"first")
    body = f'open = true\nfiles = [{{ name = "blob.bin" }}]\nsources = [{{ kind = "path", root = "{tmp_path / "origin"}" }}]'
    registry = Registry(cache_dir=tmp_path / "cache", extra=[registry_file(tmp_path, "test.blob", body)])
    path = registry.fetch("test.blob")
    assert [status.state for status in registry.verify("test.blob")] == ["ok"]
    path.unlink()
    (tmp_path / "origin" / "blob.bin").write_bytes(b"second")
    with pytest.raises(DataError, match="sha256"):
        registry.fetch("test.blob")


def test_sources_are_tried_in_order_and_all_refusals_are_told(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "blob.bin").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    first = '{ kind = "path", root = "/nowhere-a" }'

    def registry_with(second: str) -> Registry:
        body = f'open = true\nfiles = [{{ name = "blob.bin", sha256 = "{digest}" }}]\nsources = [{first}, {second}]'
        return Registry(cache_dir=tmp_path / "cache", extra=[registry_file(tmp_path, "test.blob", body)])

    with pytest.raises(ModelMissingError, match=r"(?s)nowhere-a.*nowhere-b"):
        registry_with('{ kind = "path", root = "/nowhere-b" }').fetch("test.blob")
    assert registry_with(f'{{ kind = "path", root = "{tmp_path / "there"}" }}').fetch("test.blob").is_file()


def test_unreachable_hub_is_a_reason_not_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*args: object, **kwargs: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(SourceError, match=r"the hub was not reached or refused vae/config\.json: no route to host"):
        Downloads(tmp_path).get(HubSource(kind="hub", repo="a/b", revision="main", root="vae"), "config.json")


def test_a_wheel_member_never_becomes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "wheels" / "evil-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../escaped.bin", b"payload")
    monkeypatch.setattr(Downloads, "_download_wheel", lambda self, source: wheel)
    scratch = tmp_path / "deep" / "scratch"
    scratch.mkdir(parents=True)
    source = WheelSource(kind="wheel", distribution="evil", version="1", root="../..")
    found = Downloads(scratch).get(source, "escaped.bin")
    assert found.parent == scratch and found.read_bytes() == b"payload"
    assert not (tmp_path / "escaped.bin").exists()
    with pytest.raises(SourceError, match="holds no readable"):
        Downloads(scratch).get(source, "absent.bin")


def test_pip_failure_is_told_in_words(tmp_path: Path) -> None:
    source = WheelSource(kind="wheel", distribution="rapidocr", version="0.0.0.dev999999", root="rapidocr")
    with pytest.raises(SourceError, match=r"pip download gave exit code 1"):
        Downloads(tmp_path).get(source, "models/none.onnx")


def test_the_python_version_of_a_foreign_wheel_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **options: object) -> object:
        seen.append(command)
        return sources.subprocess.CompletedProcess(command, 1, "", "refused")

    monkeypatch.setattr(sources.subprocess, "run", run)
    source = Registry().entry("copies.sscd").sources[0]
    with pytest.raises(SourceError, match="refused"):
        Downloads(tmp_path).get(source, "sscd.onnx")
    assert seen[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in seen[0] and seen[0][seen[0].index("--python-version") + 1] == "3.12"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('open = true\nfiles = [{ name = "../x" }]\nsources = [{ kind = "path", root = "/a" }]', r"files\.0\.name"),
        ('open = true\nfiles = [{ name = "x" }]\nsources = [{ kind = "url", url = "http://a/x" }]', "url"),
        ('open = true\nfiles = [{ name = "x" }]\nsources = []', "sources"),
        (
            'opne = true\nopen = true\nfiles = [{ name = "x" }]\nsources = [{ kind = "path", root = "/" }]',
            "did you mean 'open'",
        ),
    ],
)
def test_bad_registry_files_are_refused_with_the_key(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Registry(cache_dir=tmp_path, extra=[registry_file(tmp_path, "test.blob", body)])


def test_unknown_name_and_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'copies\.ssdc' is not in the registry; expected one of copies\.sscd"):
        Registry().entry("copies.ssdc")
    with pytest.raises(ConfigError, match="cannot be read"):
        Registry(extra=[tmp_path / "absent.toml"])


def test_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "reelyard" / "models"


FETCH_AND_HASH = """
import hashlib, sys
from encoders.registry import Registry
path = Registry(cache_dir=sys.argv[1], extra=[sys.argv[2]]).fetch("test.blob")
print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_processes_that_fetch_at_once_all_get_the_whole_file(tmp_path: Path) -> None:
    data = os.urandom(4 << 20)
    extra = path_entry(tmp_path, data)
    command = [sys.executable, "-c", FETCH_AND_HASH, str(tmp_path / "cache"), str(extra)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = [worker.communicate(timeout=60)[0].strip() for worker in workers]
    assert set(found) == {hashlib.sha256(data).hexdigest()}
    assert [path.name for path in (tmp_path / "cache" / "test.blob").iterdir()] == ["blob.bin"]
