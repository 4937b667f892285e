"""`python run.py bench NAME`: what is measured, and the pages under docs/results/ that it writes."""
