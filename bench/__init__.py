"""Reference benchmark for face restoration with references."""

__version__ = "0.1.0"
