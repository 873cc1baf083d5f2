"""Recipes: one YAML file, a graph of stages, reuse by content, lineage."""
