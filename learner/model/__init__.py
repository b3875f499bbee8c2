"""The policy: sharded model, packed rows, attention, log-probs, FP8."""
