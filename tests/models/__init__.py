"""Providers behind their real clients, and the bounds of prompts."""
