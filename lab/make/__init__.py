"""`python run.py make NAME`: the portrait world, and the models that are trained on it."""
