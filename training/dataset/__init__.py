"""`python run.py dataset`: a data set of portraits from lists of web addresses. docs/dataset.md tells how it is used.

plan (select.py) cuts the addresses into units; run (unit.py) fetches and looks at one unit after another, in processes
of this machine or of many (engine.py); pack (pack.py) writes the shards that `train` reads.
"""
