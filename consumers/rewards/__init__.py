"""Scores completed rollouts."""
