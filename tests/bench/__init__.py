"""Measurements, each run by name: `python -m tests.bench`, and `tests.bench.simulation` and others."""
