"""Checkpoints that are either complete or absent: saving, verifying, loading and pruning."""
