"""Text to tokens, the same way for training and for scoring."""
