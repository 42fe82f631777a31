"""The caption phase with a language model that sees frames, behind an OpenAI-compatible server."""
