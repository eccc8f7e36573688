"""Load what tools/visualize.py compares, and report statistics of attention."""
