"""All of the Kinetics video datasets as plain files."""

__version__ = "0.1.0"
