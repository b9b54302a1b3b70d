"""Nodes when calls fail, and the judge."""
