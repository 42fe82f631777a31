"""The proof of a plan: the facts of its samples, a replay of each lane, the ledger, and bounds. Imports schemas only, nothing of the builder."""
