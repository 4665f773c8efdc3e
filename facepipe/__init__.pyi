# The public API: what type checkers see, and what __init__.py loads when it is first used.

from .align import align_faces as align_faces
from .core.errors import FacepipeError as FacepipeError
from .core.faces import Face as Face
from .core.faces import Faces as Faces
from .core.faces import Match as Match
from .detector import DetectorOptions as DetectorOptions
from .detector import FaceDetector as FaceDetector
from .encoder import FaceEncoder as FaceEncoder
from .enrollment import PersonPhoto as PersonPhoto
from .enrollment import enroll as enroll
from .enrollment import photos_in_csv as photos_in_csv
from .enrollment import photos_in_folders as photos_in_folders
from .gallery import Gallery as Gallery
from .images.finding import find_photos as find_photos
from .images.reading import read_image as read_image
from .pipeline import FacePipeline as FacePipeline
from .pipeline import NamingOptions as NamingOptions
from .runtime.engines import choose_runtime as choose_runtime
from .shortcuts import Found as Found
from .shortcuts import Verification as Verification
from .shortcuts import find as find
from .shortcuts import represent as represent
from .shortcuts import stream as stream
from .shortcuts import verify as verify

__all__: list[str]
__version__: str
