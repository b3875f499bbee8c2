"""Collects the rollouts of a prompt and drops groups without variance."""
