"""Helpers that know nothing of Kinetics: databases, files, HTTP, processes, text, logs."""
