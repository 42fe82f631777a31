"""Ablations: one base configuration and named changes to it, each trained on the same small data, in one table with curves.

config.py    the file: base, data, variants        data.py    parts of a set, and their plans
runs.py      one run in a process of its own       suite.py   all of them: order, resume, failures
noise.py     how far chance sets runs apart        preflight.py   what would end them
results.py   what a run's files say                table.py, page.py   how it is shown
"""

__all__: list[str] = []
