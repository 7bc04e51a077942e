"""Monitoring of a training run: metrics, health checks and the online probe."""
