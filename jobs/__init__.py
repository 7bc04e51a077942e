"""Where and when the work runs: console scripts, clusters, Slurm, monitoring."""
