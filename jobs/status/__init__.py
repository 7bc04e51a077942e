"""Status of runs and packings, for simclr-status."""
