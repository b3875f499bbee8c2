"""From the log to tensors: plans in order, this rank's rollouts by reference, and the steps already on the log."""
