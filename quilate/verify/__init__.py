"""A certificate that one stage trained on what its user thinks it did, made on that user's own model and rows."""
