"""Benchmarks of prrfl: ratios measured within one run, beside a plain form of the paper and bare calls."""
