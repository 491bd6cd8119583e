"""The experiments of GPICL (Kirsch et al. 2022): ``python -m baselines.experiments``.

spec.py        what an experiment is: runs named by their content, a summary, a plot, a verdict
library.py     the experiments by name; figures/ has one module for each
toml.py        experiments of the user's own, from a TOML file
store.py       the folder of runs: which are finished, who works in it, tables
execute.py     one run: meta-train or resume, measure, note that it is done
engines.py     who computes the runs: this process, or a pool of processes on this machine
ray_engine.py  a Ray cluster
ensemble.py    runs of one shape as one, by torch.func
sweep.py       the driver: what is left to do, an engine, the table, figure and verdict
findings.py    statistics of verdicts: plateaus, phases, bimodality, intervals
"""
