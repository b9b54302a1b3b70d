"""Metered calls: each is held to its reservation and charged what it cost."""
