"""What a run is: its calls and state as plain data, how replies are folded in, and which answer is held."""
