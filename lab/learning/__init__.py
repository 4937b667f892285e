"""What the commands of `lab/make` share: pictures in memory, losses, text, samples.

Needs the packages of requirements-dev.lock; nothing here is imported when the demo runs.
"""
