"""Saving a run, and going on from what was saved.

run_saves.py     when a run saves, and what it keeps    continuation.py   what is different when a run goes on
checkpoint.py    a checkpoint read                      environment.py    versions and machine, for the record
folders.py       names, completeness, what is kept      whole_network.py  a checkpoint to a whole network
parts.py         which rank writes what
writer.py        a copy of the state to disk, in the background
"""
