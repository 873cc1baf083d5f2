"""A labelled task: labels and verbalizers, prompt templates, leak-free splits."""
