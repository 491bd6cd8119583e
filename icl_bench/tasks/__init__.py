"""Tasks: counter-based random bits, projections and permutations, and the episode sampler."""
