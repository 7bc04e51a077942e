"""What simclr-status reports."""
