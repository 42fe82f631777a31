"""Where results lie: a local folder and a prefix on a server behave alike, and a half-replaced set has no `set.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curation.commits import DONE
from curation.config import CurateConfig
from curation.objects import Objects
from curation.places import ObjectPlace, Place, open_place
from schemas.config import build_config


def _config(output: str, tmp_path: Path) -> CurateConfig:
    values = {"output": output, "sources": ["/films"], "scratch": str(tmp_path / "scratch")}
    return build_config(CurateConfig, values, source="test")


@pytest.fixture(params=["folder", "object"])
def place(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> Place:
    return open_place(_config(str(tmp_path / "out") if request.param == "folder" else f"{bucket}/run/", tmp_path))


def _again(place: Place, tmp_path: Path) -> Place:
    """As another command sees it."""
    place.close()
    return open_place(_config(place.address, tmp_path))


def _write(place: Place, name: str, text: str) -> None:
    (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (place.folder / name).write_text(text)
    place.publish(name)


def test_what_was_published_is_there_for_the_next_command(place: Place, tmp_path: Path) -> None:
    assert not place.has("tables/a.parquet") and place.sizes("tables") == {}
    _write(place, "tables/a.parquet", "table")
    (place.folder / "report" / "deep").mkdir(parents=True)
    (place.folder / "report" / "deep" / "b.html").write_text("page")
    place.publish("report")
    later = _again(place, tmp_path)
    assert later.near("tables/a.parquet").read_text() == "table" and later.has("report/deep/b.html")
    assert later.sizes("tables") == {"a.parquet": 5} and later.sizes("report") == {}
    _write(later, "tables/a.parquet", "changed")
    assert later.near("tables/a.parquet").read_text() == "changed"
    later.close()


def test_a_set_takes_the_place_of_another(place: Place, tmp_path: Path) -> None:
    store = place.commits("commits")
    for key in ("k1", "k2"):
        with store.unit("pack", key, {"status": DONE, "reason": None}) as folder:
            (folder / "shard-0.tar").write_text(f"tar of {key}")
    for number, keys in enumerate((["k1", "k2"], ["k2"])):
        with place.new_set("sets/64p") as new:
            for position, key in enumerate(keys):
                new.add(store, "pack", key, "shard-0.tar", f"shard-{position}.tar")
            for name in ("samples.parquet", "set.json"):
                (new.folder / name).write_text(f"{name} {number}")
    later = _again(place, tmp_path)
    assert sorted(later.sizes("sets/64p")) == ["samples.parquet", "set.json", "shard-0.tar"]
    assert later.near("sets/64p/shard-0.tar").read_text() == "tar of k2"
    assert later.near("sets/64p/set.json").read_text() == "set.json 1" and later.sweep() == 0
    later.close()


def test_an_error_leaves_the_set_before_as_it_was(place: Place, tmp_path: Path) -> None:
    _write(place, "sets/64p/set.json", "before")
    with pytest.raises(RuntimeError), place.new_set("sets/64p") as new:
        (new.folder / "set.json").write_text("half")
        raise RuntimeError
    later = _again(place, tmp_path)
    assert later.near("sets/64p/set.json").read_text() == "before"
    later.close()


def test_a_set_that_is_half_copied_is_refused_by_its_readers(bucket: str, s3: Any, tmp_path: Path) -> None:
    place = open_place(_config(f"{bucket}/run", tmp_path))
    assert isinstance(place, ObjectPlace)
    store = place.commits("commits")
    with store.unit("pack", "k", {"status": DONE, "reason": None}) as folder:
        (folder / "shard-0.tar").write_text("tar")
    _write(place, "sets/64p/set.json", "before")
    s3.fail({"path": "sets/64p/samples.parquet", "method": "PUT", "status": 403, "times": 9})
    with pytest.raises(PermissionError), place.new_set("sets/64p") as new:
        new.add(store, "pack", "k", "shard-0.tar", "shard-0.tar")
        for name in ("samples.parquet", "set.json"):
            (new.folder / name).write_text(name)
    assert list(Objects(f"{bucket}/run/sets").listing()) == ["64p/shard-0.tar"]
    place.close()
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]


def test_attempts_of_a_run_can_be_forgotten(place: Place) -> None:
    from curation.attempts import count_attempt

    assert [count_attempt(place.attempts("run"), "analyze", "u") for _ in range(3)] == [1, 2, 3]
    assert count_attempt(place.attempts("run"), "analyze", "v") == 1
    place.forget_attempts("run")
    assert count_attempt(place.attempts("run"), "analyze", "u") == 1
