"""Objects against a real S3 server: names are data, puts are whole or conditional, failures are tried again or told in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curation.objects import Objects, explain, forget_clients

NAMES = [
    "a b/50%41.mp4",
    "a b/-rf.mp4",
    "a b/quote'\"`$(x);.mp4",
    "a b/h\u00e4\u00df \u65e5\u672c.mp4",
    "a b/x[1]*.mp4",
]


def test_awkward_names_are_written_listed_read_and_removed(bucket: str, tmp_path: Path) -> None:
    objects = Objects(f"{bucket}/deep/er")
    for name in NAMES:
        objects.write(name, name.encode())
    listed = objects.listing("a b")
    assert sorted(listed) == sorted(NAMES) and {facts.size_bytes for facts in listed.values()} == {
        len(name.encode()) for name in NAMES
    }
    assert all(objects.read(name) == name.encode() for name in NAMES)
    assert objects.read(NAMES[0], 2, 5) == NAMES[0].encode()[2:5]
    assert sorted(Objects(bucket).listing()) == sorted(f"deep/er/{name}" for name in NAMES)
    objects.copy(NAMES[0], "copy")
    objects.fetch({"copy": tmp_path / "new" / "copy"})
    assert (tmp_path / "new" / "copy").read_bytes() == NAMES[0].encode()
    objects.remove([NAMES[0], "copy", "not there"])
    assert sorted(objects.listing()) == sorted(NAMES[1:])


def test_a_prefix_ends_at_a_slash(bucket: str) -> None:
    Objects(bucket).write("film/a", b"1")
    Objects(bucket).write("films/b", b"1")
    assert list(Objects(f"{bucket}/film").listing()) == ["a"] and list(Objects(bucket).listing("film")) == ["film/a"]


def test_patterns_match_at_any_depth(bucket: str) -> None:
    for name in ("x/a.mp4", "x/y/b.mp4", "x/c.txt"):
        Objects(bucket).write(name, b"1")
    assert list(Objects(bucket).matching("x/**/*.mp4")) == ["x/a.mp4", "x/y/b.mp4"]


def test_a_put_can_ask_that_nothing_or_the_known_thing_is_there(bucket: str) -> None:
    objects = Objects(bucket)
    assert objects.create("lease", b"1") and not objects.create("lease", b"2")
    facts = objects.facts("lease")
    assert facts is not None and objects.exchange("lease", b"3", facts.version)
    assert not objects.exchange("lease", b"4", facts.version), "it is another one by now"
    assert objects.read("lease") == b"3" and objects.facts("none") is None


def test_a_large_file_is_uploaded_in_parts_and_a_failed_one_leaves_none(bucket: str, s3: Any, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (110 << 12))
    objects = Objects(bucket)
    objects.upload({"large": path})
    assert any("uploadId" in line or line.startswith("POST") for line in s3.seen())
    facts = objects.facts("large")
    assert facts is not None and facts.size_bytes == path.stat().st_size
    s3.fail({"path": "/other", "method": "PUT", "status": 403, "times": 99})
    with pytest.raises(PermissionError):
        objects.upload({"other": path})
    assert any(line.startswith("DELETE") and line.endswith("/other") for line in s3.seen()), "the upload was aborted"
    assert objects.facts("other") is None


@pytest.mark.parametrize("status", [500, 503])
def test_server_errors_are_tried_again(bucket: str, s3: Any, status: int) -> None:
    objects = Objects(bucket)
    objects.write("a", b"data")
    s3.fail({"path": "/a", "method": "GET", "status": status, "times": 2})
    assert objects.read("a") == b"data"


def test_what_is_denied_or_missing_is_said_and_not_tried_again(
    bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects(bucket)
    objects.write("a", b"data")
    s3.fail({"path": "/a", "method": "GET", "status": 403, "times": 99})
    s3.seen()
    with pytest.raises(PermissionError) as denied:
        objects.read("a")
    assert len([line for line in s3.seen() if line.endswith("/a")]) == 1, "one request"
    assert explain(denied.value).startswith("access is denied (403)")
    with pytest.raises(FileNotFoundError) as missing:
        objects.read("none")
    assert explain(missing.value).startswith("is not there (404)")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    forget_clients()
    with pytest.raises(PermissionError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
        objects.listing()
