"""Checkpoints that are whole or absent: saving, loading, keeping, and pretrained encoders."""
