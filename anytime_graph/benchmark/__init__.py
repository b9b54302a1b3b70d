"""Benchmarks: strategies on a task's questions, at equal budgets, with everything that was spent.

cells: what is measured, and its records. recording, tape: what the model answered, and the model in
front of it that answers from there. run, paper: the two protocols. session: cell after cell within a budget for all.
spread, shared: the same by workers of a Ray cluster, and what they buy.
figures, report: what the records say. command: `anytime-graph bench`.
"""
