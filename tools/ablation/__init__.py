"""Helpers of tools/ablation.py."""
