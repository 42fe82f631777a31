"""Have tars changed since a set was made? One look at size and time (or etag) of each, never at their bytes.

Files cost one `stat` each; objects one request each, many at a time. A set without stamps (one that was packed here) is compared by size alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from planner.indexing.places import TarPlace, find_place, is_remote
from schemas.shards import SetInfo, ShardInfo, shard_address

__all__ = ["changed_shards", "same_stamp"]

_REQUESTS_AT_ONCE = 32


def changed_shards(folder: Path, info: SetInfo) -> list[str]:
    """A message with numbers for each tar that is not as `set.json` says; none where the tars are as they were.

    Tars that are gone are named where others of the set are there; a set none of whose tars are on this machine gives no message.

    Raises:
        ServiceError: an object store does not answer or refuses.
    """
    addresses = [shard_address(folder, info, shard.name) for shard in info.shards]
    found = _places(addresses)
    if not any(found):
        return []
    advice = "index it again" if info.origin == "indexed" else "copy the set again, or pack it again"
    messages = []
    for shard, address, place in zip(info.shards, addresses, found, strict=True):
        if place is None:
            messages.append(f"{address} is gone; set.json lists it with {shard.size_bytes} bytes: {advice}")
        elif same_stamp(shard, place) is False:
            messages.append(f"{address} has changed: {_difference(shard, place)}; {advice}")
    return messages


def same_stamp(shard: ShardInfo, place: TarPlace) -> bool | None:
    """Whether a tar is the one that was recorded; None if nothing but an equal size speaks for it."""
    if shard.size_bytes != place.size_bytes:
        return False
    if shard.etag is not None and place.etag is not None:
        return shard.etag == place.etag
    if shard.modified_ns is not None and place.modified_ns is not None:
        return shard.modified_ns == place.modified_ns
    return None


def _places(addresses: Sequence[str]) -> list[TarPlace | None]:
    if not addresses or not is_remote(addresses[0]):
        return [find_place(address) for address in addresses]
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        return list(pool.map(find_place, addresses))


def _difference(shard: ShardInfo, place: TarPlace) -> str:
    if shard.size_bytes != place.size_bytes:
        return f"{place.size_bytes} bytes, set.json says {shard.size_bytes}"
    if shard.etag != place.etag and shard.etag and place.etag:
        return f"etag {place.etag}, set.json says {shard.etag}"
    return f"last changed {_time(place.modified_ns)}, set.json says {_time(shard.modified_ns)}"


def _time(nanoseconds: int | None) -> str:
    if nanoseconds is None:
        return "at an unknown time"
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:09d} UTC"
