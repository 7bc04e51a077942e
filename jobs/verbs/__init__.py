"""One module per console script: configuration to task to dispatch."""
