"""The graph's nodes: the hub plans, and each spoke makes one metered call."""
