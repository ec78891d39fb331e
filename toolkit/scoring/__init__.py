"""Predictions for whole files and corpora: on this machine, or on the workers of a data engine."""
