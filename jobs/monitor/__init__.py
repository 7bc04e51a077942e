"""How runs fare: records of run folders and Slurm's word become a table."""
