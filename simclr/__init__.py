"""Shards to encoder: SimCLR pretraining, evaluation and export on any number of ranks."""
