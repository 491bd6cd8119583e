"""The experiments of GPICL (Kirsch et al. 2022): ``python -m baselines.experiments``.

what is run
    spec.py        an experiment: runs named by their content, a summary, a plot, a verdict
    library.py     the experiments by name; figures/ has one module for each
    toy.py         the size of the presets ``cpu``
    toml.py        experiments of the user's own; values.py: their values, and --set's
who computes it
    sweep.py       the driver: what is left to do, an engine, then table, figure and verdict
    engines.py     this process, or a pool of processes; ray_engine.py: a Ray cluster
    execute.py     one run: meta-train or go on, measure, note that it is done
    ensemble.py    runs of one shape as one, which stack.py trains
    references.py  learners that are not meta-trained, as runs of a suite
    store.py       the folder of runs: which are finished, who works in it, tables
what it shows
    tables.py      numbers of a figure out of the table; plateaus.py: those of plateaus
    drawing.py     the style of figures
    findings.py    verdicts, and the statistics of findings_*.py: intervals, ranks, curves, modes
"""
