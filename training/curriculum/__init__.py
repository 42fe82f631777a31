"""The curriculum: what a stage says of itself, how weights pass from one to the next, and whether the whole chain fits together."""

__all__: list[str] = []
