"""Evaluation of encoders: k-NN, linear probes and fine-tuning beside untrained controls."""
