"""Labels of detection data sets, in the formats of RetinaFace, WIDER FACE, COCO, Pascal VOC and YOLO."""

from facepipe.evaluation.labels.models import FaceLabel, LabelledPhoto
from facepipe.evaluation.labels.reading import read_labels, unlabelled_photos

__all__ = ["FaceLabel", "LabelledPhoto", "read_labels", "unlabelled_photos"]
