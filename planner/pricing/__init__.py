"""What a micro-batch costs, how large it is, and which buckets may share a row."""
