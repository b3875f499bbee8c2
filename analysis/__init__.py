"""The reader's side: everything that is computed from a log, of an active or a finished run."""
