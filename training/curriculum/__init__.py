"""The curriculum: what a stage says of itself, how weights pass from one to the next, whether the chain fits together, and its data with it."""

__all__: list[str] = []
