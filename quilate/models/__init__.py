"""Models: load and save Hugging Face directories, packed attention, the split at the output head, tuning methods."""
