"""What the tests share: a provider, databases, processes to kill, and what graphs are made of."""
