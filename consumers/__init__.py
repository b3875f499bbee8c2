"""Rewards, groups and batches: what happens to a rollout between the engine and the learner."""
