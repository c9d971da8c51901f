"""Making bundles from labelled data and judging them: clusters, quality tables, linear head, curves, gates, plots."""
