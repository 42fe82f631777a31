"""Schedule to checkpoints, samples and exports: the DiT and its FSDP2 trainer.

Reads what the planner wrote (schemas.plan) and never imports the planner or curation.
"""
