"""A run on one machine: what a cluster's orchestrator replaces."""
