"""Implementations of layers tuned for XLA's CPU compiler, selected by `zoo.nn.platform`. Each module gives the reason.

Tests compare every form with its plain form. `python -m benchmarks cpu_forms` times both, which shows when a new XLA
version makes a form unnecessary.
"""
