"""The crc32 of packed members, by the fastest implementation that is installed; all give the same number.

`zlib-ng` uses the carry-less multiplication of the processor and is several times as fast as most builds of zlib on members of some kB and more.
Without it the standard library's is taken. Price: one more wheel, which nothing depends on.
"""

from __future__ import annotations

import zlib

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # the wheel is not built for every platform
    crc32 = zlib.crc32

__all__ = ["crc32"]
