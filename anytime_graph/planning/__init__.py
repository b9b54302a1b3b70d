"""What to do next, at what cost, and why a run ends."""
