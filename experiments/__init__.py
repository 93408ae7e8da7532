"""Experiments: methods compared over numbers of examples and seeds, by `python -m experiments run FILE`.

config.py      what an experiment's file says
methods.py     the methods by name: which examples each is trained on, and by which policy
examples.py    the examples: the model's own, worked solutions, second tries with a hint
grid.py        one method after another, each measured alike; resumes where it was killed
results.py     the folders of a grid as two tables
statistics.py  intervals over seeds, paired comparisons
record.py      the tables as Parquet and Markdown, and the plots
"""
