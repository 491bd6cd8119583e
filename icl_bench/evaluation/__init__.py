"""Learners, the evaluation protocol, results, statistics and plots."""
