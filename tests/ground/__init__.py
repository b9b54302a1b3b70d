"""What every room stands on: scores, measures, the embedded model."""
