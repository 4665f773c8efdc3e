"""The API's first version: photos, people, the gallery."""

from facepipe.server.v1 import gallery, people, photos

routers = (photos.router, people.router, gallery.router)
