"""Self-contained pages of HTML, and the drawings on them."""
