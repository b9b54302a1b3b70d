"""Ledgers, leases and memories, and resuming from them."""
