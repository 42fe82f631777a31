"""`reelyard-train report`: one page of everything that a run wrote down."""

__all__: list[str] = []
