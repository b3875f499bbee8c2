"""Decides which prompts to issue next, how many samples each, and when to hold back."""
