"""Using models: one `Scorer` interface over local models and baselines; label scoring with shared prefixes; chat."""
