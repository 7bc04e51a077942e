"""A pretrained encoder as files that others load, and the way back from them."""
