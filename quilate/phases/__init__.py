"""The phases of a model's life, one file each; every one is a stage kind that a recipe can name."""
