"""Base data sets: sources to canonical uint8 arrays, and their views as cached float arrays."""
