"""``python -m benchmarks.side_by_side``: early exit on this CPU compared with alternatives, in one interleaved run."""
