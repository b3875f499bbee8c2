"""The policy: the sharded model, packed rows, attention, log-probs and FP8."""
