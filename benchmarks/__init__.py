"""Benchmarks: figures with the machine they were measured on; never assertions."""
