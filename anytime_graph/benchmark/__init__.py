"""Benchmarks: compare strategies on the questions of a task, at equal budgets.

cells: what is measured, and the records. recording, tape: every reply, and the model that replays
them. run, paper: the two protocols. session: measures all cells within one budget. spread, shared:
measure on a Ray cluster. figures, chart, report, advice: what the records show. order: the options
of `anytime-graph bench`.
"""
