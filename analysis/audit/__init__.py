"""How every rollout ended, proved from the raw topics. Pure."""
