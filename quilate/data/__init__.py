"""Reading what the user has: tables of labelled rows, and packing token sequences for the engine."""
