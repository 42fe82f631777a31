"""From a samples table to a schedule of sequential reads that names every clip of every step; offline, on one machine.

Imports schemas only, and neither torch, ray nor webdataset: a plan can be made and verified on a laptop. `verify` shares no code with the rest.
"""

__all__: list[str] = []
