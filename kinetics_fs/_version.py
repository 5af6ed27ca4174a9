"""The version of kinetics-fs."""

__version__ = "0.1.0"
