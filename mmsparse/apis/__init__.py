"""What the commands share: reading a config, checking it, building its model."""
