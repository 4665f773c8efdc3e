"""CompreFace's routes for recognition, verification and detection, for clients that speak its REST API.

Subjects are the people of the gallery, examples their templates. Plugins for age, gender, mask and pose are
refused.
"""

from facepipe.server.compreface.routes import router

__all__ = ["router"]
