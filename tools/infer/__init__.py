"""Predict on images and videos, draw and write the predictions: tools/infer.py."""
