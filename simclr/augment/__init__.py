"""Two augmented views of each patch, made on the device for the entire batch at once."""
