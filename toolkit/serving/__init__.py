"""HTTP service of one bundle: ``berxit serve`` and ``berxit demo``. Documentation: docs/serving.md."""
