"""The documents, and the repository as they describe it."""
