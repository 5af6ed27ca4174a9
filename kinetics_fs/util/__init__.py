"""Helpers without any knowledge of Kinetics: databases, files, HTTP, processes, logs."""
