"""The commands, the quickstart, reports and figures, and the sample data."""
