"""The vLLM rollout producer and its weight subscriber."""
