"""Published weights as a producer takes them: subscription, copies on its disk, the canary."""
