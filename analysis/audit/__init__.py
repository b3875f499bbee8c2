"""Every rollout's disposition, proved from the raw topics. Pure."""
