"""Cut a checkpoint into one segment per layer, and write them as a bundle for a target. See exporters.export."""
