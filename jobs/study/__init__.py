"""Studies: arms times seeds, and their report."""
