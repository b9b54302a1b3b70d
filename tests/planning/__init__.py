"""What comes next, at what cost, and why it ends."""
