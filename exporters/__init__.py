"""Export of a checkpoint as a bundle with one segment per layer. See exporters.export."""
