"""The evidence for human eyes: one self-contained HTML file, one terminal table, one CSV of errors."""
