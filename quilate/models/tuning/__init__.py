"""Which parameters of a base are trained: all of them, or a PEFT method's."""
