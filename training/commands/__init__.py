"""`python run.py train NAME`."""
