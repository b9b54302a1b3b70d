"""Benchmarks by command, over many processes, and advice from them."""
