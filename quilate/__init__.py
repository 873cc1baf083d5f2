"""quilate raises a language model through its phases and measures what each phase was worth."""

__version__ = "0.1.0"
