"""Encoder and projection head, BatchNorm over ranks, and pretrained weights."""
