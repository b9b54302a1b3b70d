"""A run as plain data: its calls and state, how replies are folded in, and which answer is best."""
