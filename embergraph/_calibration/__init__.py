"""What a calibration is computed with: tallies of replicates, tests of ranks and coverage, the table."""
