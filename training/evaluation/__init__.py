"""What a network is worth: fixed prompts while it trains, dense losses on held-out clips, lengths beyond those of training."""

__all__: list[str] = []
