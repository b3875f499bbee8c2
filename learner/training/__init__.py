"""Training: the loop over batches, one step, its proximal pass, the learning rate, and what they are built from."""
