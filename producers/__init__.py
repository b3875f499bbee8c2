"""Prompts and rollouts: the dispatcher and the vLLM rollout producer."""
