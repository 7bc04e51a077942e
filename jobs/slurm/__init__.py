"""Slurm: queries, submission, the environment of a rank, preemption, heartbeats."""
