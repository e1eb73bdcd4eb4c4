"""Pieces that guides share: closed forms, point masses, edge posteriors."""
