"""Shards as a training data set: samples, their order, and batches on the device."""
