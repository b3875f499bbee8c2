"""From the log to tensors: plans in order, this rank's rollouts by reference, and what earlier steps did."""
