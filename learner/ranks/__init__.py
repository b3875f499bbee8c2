"""The group of ranks: rendezvous, collectives, agreement before each batch, and failure detection."""
