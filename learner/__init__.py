"""The policy model, router replay, objectives, train loop, checkpoints and weight publication."""
