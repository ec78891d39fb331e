"""One command per module; each imports what it needs only when it runs, so that --help is quick and needs no torch."""
