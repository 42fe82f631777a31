"""VBench: its prompts to videos under its names, and its package's scores to a table, where the package and its weights are there.

dimensions.py   the sixteen dimensions     prompts.py   its prompt lists     videos.py   videos, resumable
package.py      the installed package      scores.py    results to totals    score_one.py   what runs in the package's interpreter
preflight.py    what scoring would need    generator.py   the run's sampler  scoring.py     dimension after dimension

Names, lists and results are those of the repository Vchitect/VBench and of its package 0.1.5. The package pins numpy below 2 and transformers 4.33,
so it is no dependency of this project and runs in an interpreter of its own.
"""

__all__: list[str] = []
