"""Training RetinaFace: labelled photos, augmentation, targets, losses."""
