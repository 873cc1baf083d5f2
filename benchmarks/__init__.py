"""Measurements of quilate against its peers; see README.md. Run one as `python -m benchmarks.training`."""
