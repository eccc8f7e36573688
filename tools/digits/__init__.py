"""The digits data set: tools/prepare_digits.py."""
