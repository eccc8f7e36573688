"""Official checkpoint layouts and ours."""
