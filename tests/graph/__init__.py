"""The whole graph, and the promises over random models and budgets."""
