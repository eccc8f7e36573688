from recorded_models import detector, detector_cfg, record_backbone  # noqa: F401
