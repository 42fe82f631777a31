"""Tars that somebody else packed, to a set that can be planned: headers are read, member data is not."""
