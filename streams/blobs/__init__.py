"""Heavy bytes beside the log: the claim-check store and its digests."""
