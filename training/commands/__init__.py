"""The commands of `reelyard-train`, a file each: what they are asked with, and what they say. The work is done elsewhere."""

__all__: list[str] = []
