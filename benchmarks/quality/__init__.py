"""Quality beside the best published figures: `python -m benchmarks.quality`."""
