"""Measures of generated portraits: the person (identity), the fine detail (detail), the prompt (text).

Benchmarks use them to judge pictures. Nothing that is trained may look through them, or they would stop to measure.
"""
