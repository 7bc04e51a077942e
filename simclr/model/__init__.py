"""Encoder, projection head and the two together."""
