"""`run.py train ic-portrait`: the matching and the appearance net."""
