"""What a run's step was trained on: clips, captions, draws and pictures, from the run's folder, its plan and its sets; and what loss spikes share."""
