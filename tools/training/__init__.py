"""Training of small models: what ablate.py, compare.py and quickstart.py share."""
