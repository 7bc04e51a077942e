"""Evaluation of encoders by k-NN, linear probe and fine-tuning, against untrained controls."""
