"""The encode phase of one source: latents and teacher features from one decode, and text states of captions."""
