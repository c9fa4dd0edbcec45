"""Measurements of speed and memory, see `python -m benchmarks --help`. No part of the package that is installed."""
