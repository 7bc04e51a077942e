"""Slurm: queries, submission, the environment of a rank, requeueing, heartbeats."""
