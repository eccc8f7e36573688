"""Read annotations of VOC, YOLO and LabelMe; write COCO JSON and label maps."""
