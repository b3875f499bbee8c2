"""The reader's side: everything that is computed from a log, of a run that goes on or has finished."""
