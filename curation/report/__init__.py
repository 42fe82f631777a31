"""The report of a run, to be looked at: one HTML page and one PNG, both self-contained."""
