"""What a run did, read from its topics: events, latency, weights, dead letters."""
