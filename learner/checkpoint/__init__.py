"""Checkpoints: written atomically, and holding the position on the log."""
