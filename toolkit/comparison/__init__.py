"""Comparisons behind ``berxit compare``: two models on the same texts, or two benches."""
