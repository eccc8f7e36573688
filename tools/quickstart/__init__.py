"""Helpers of tools/quickstart.py."""
