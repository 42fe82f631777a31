"""Where a run's numbers go beside `metrics.jsonl`: TensorBoard, Weights & Biases, the terminal, and the run's history."""

__all__: list[str] = []
