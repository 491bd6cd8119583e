"""One module for each experiment; ``EXPERIMENT`` in it is found by ``library.py``."""
