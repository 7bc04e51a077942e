"""Shards as a training data set: samples, their order, batches on the device."""
