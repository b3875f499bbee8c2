"""The log runtime: brokers, clients, stage runner, offset tracker, blob store, dead letters, tracing, lifecycle."""
