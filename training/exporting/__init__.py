"""Weights out of and into this project: folders that diffusers loads, the layout of the released weights, and a run's weights."""

__all__: list[str] = []
