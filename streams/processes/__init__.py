"""Child processes that end with their parents, and the environment that they need."""
