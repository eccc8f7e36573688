"""Comparison of models of mmsparse with those of other libraries: tools/compare.py."""
