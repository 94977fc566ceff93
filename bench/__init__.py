"""Measures the jumpserver beside its peers on this machine: ``python -m bench``. README.md says how to read it."""
