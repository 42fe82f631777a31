"""Attention between frames: the measure (`shares.py`), a run on real clips (`report.py`), its page (`page.py`)."""

__all__: list[str] = []
