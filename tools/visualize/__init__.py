"""Read and record the models that tools/visualize.py compares."""
