"""HTML pages without scripts, from numbers: markup, and charts as SVG."""

__all__: list[str] = []
