"""Frozen networks: latent codecs, text encoders, teachers, scorers, and the registry that fetches and checks their weights."""
