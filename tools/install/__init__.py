"""Helpers of tools/install.py."""
