"""A run's configuration: read, judged, resolved, written."""
