"""Parameters and MACs of models."""
