"""Baselines: programs that make learners, one file a method: ``python -m baselines.NAME``."""
