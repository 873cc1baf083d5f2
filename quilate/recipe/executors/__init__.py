"""How stages are run: each in a subprocess of its own."""
