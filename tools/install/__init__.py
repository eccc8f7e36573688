"""Steps of tools/install.py."""
