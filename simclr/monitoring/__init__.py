"""What a training reports about itself: metrics, health checks, the online probe."""
