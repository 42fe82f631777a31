"""Everything that can be checked before a run, each check by itself: one that fails hides no other."""
