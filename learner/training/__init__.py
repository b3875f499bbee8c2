"""One batch after another: the loop, the step, the proximal pass, the learning rate."""
