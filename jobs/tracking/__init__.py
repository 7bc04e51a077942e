"""TensorBoard, W&B and MLflow: each follows ``metrics.jsonl`` of a run in its own process."""
