"""Scores of a frozen encoder: features, k-NN and linear probe beside their controls."""
