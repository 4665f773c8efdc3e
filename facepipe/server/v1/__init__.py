"""The API's first version: photos, people, the gallery, jobs."""

from facepipe.server.v1 import gallery, jobs, people, photos

routers = (photos.router, people.router, gallery.router, jobs.router)
