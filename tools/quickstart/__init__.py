"""Three training runs on the digits: tools/quickstart.py."""
