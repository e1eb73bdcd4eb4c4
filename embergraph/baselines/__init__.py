"""Placeholder, see the commit that fills it."""
