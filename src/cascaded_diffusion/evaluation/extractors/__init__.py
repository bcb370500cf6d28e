"""Feature extractors: a classifier of our own, EfficientNet-Lite0, Inception, and any exported network."""
