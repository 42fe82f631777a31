"""Other ways to schedule the same clips, measured like ours."""
