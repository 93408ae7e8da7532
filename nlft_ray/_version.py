"""The version of this package, apart from everything else so that every layer may read it."""

__version__ = "0.1.0"
