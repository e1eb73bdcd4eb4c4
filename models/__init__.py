"""Generative models, one file a method; shared pieces live in `parts`."""
