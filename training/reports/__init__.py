"""Reports on a trained network: what is measured in one file, its page in another, the pieces of pages in `markup` and `svg`."""

__all__: list[str] = []
