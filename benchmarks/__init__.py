"""Measurements that anyone can repeat: `python -m benchmarks.NAME` prints a table, `--json` the same as JSON."""
