"""Checkpoints: written whole or not at all, with the position on the log inside."""
