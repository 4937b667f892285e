"""What the weight-making scripts of `demo/making` share: pictures in memory, the training clock, losses, text, samples.

Needs the packages of requirements-dev.lock; nothing here is imported when the demo runs.
"""
