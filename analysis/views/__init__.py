"""Views of a run for a person: live figures, summary, report."""
