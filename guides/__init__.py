"""Guides: variational families for the models, and what they need to be built."""
