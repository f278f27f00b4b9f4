"""Benchmarks of every op, its backward and a training step against peers; `fastnn bench` runs them.

In a wheel this package is ``fastnn.benchmarks``; in a source checkout it is the folder next to ``python/``.
"""
