"""Many questions under one budget; and series of questions with a budget each."""

from anytime_graph.batch.allocation import Answered, Batch, Progress, abatch, batch

__all__ = ["Answered", "Batch", "Progress", "abatch", "batch"]
