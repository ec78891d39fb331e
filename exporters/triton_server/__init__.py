"""Model folders for Triton Inference Server. Documentation: docs/serving.md."""
