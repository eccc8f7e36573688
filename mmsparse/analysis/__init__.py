"""Count parameters, MACs and FLOPs."""
