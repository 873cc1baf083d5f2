"""The one training loop and its contracts: exact resume, verified checkpoints, guards, logging."""
