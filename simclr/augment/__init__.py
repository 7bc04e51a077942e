"""Two views of each patch, made on the device for the whole batch at once."""
