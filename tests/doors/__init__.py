"""The ways in besides the graph: chat models, agents, audits, notebooks, servers."""
