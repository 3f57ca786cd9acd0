"""What callers notice when things break: `python -m benchmarks.serving_faults`."""
