"""Tasks for benchmarks, and finding answers in replies."""
