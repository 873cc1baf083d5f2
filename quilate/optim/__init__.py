"""Optimizers with fp32 master weights, and learning-rate schedules."""
