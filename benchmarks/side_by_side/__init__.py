"""``python -m benchmarks.side_by_side``: early exit on this CPU against the alternatives, in one interleaved run."""
