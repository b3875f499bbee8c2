"""Learning curves of several objectives from one recorded stream of rollouts."""
