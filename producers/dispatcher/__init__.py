"""Which prompts are requested next, with how many samples, and when to hold back."""
