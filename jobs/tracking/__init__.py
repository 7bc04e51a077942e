"""TensorBoard, W&B and MLflow: each follows ``metrics.jsonl`` of a run in a process of its own."""
