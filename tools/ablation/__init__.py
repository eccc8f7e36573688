"""Studies of model variants: tools/ablate.py."""
