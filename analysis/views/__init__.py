"""What a person looks at: live figures, summary, report."""
