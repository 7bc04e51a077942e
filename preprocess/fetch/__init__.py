"""Data from the network to a folder that packing reads. What is under its final name is whole."""
