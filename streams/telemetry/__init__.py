"""Traces of a run, and every name that appears in them."""
