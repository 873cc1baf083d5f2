"""Raw text to clean text: sources, filters, duplicates, contamination, personal data, and the card of what was done."""
