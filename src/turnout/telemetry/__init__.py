"""Small renderers of facts: counters and histograms (meter), Prometheus text and structured logs."""
