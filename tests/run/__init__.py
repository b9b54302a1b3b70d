"""What a run holds: pairs, and which answer is best."""
