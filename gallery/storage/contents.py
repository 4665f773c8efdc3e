"""Everything that one gallery gives to another, without ids."""

from __future__ import annotations

from facepipe.gallery.models import Contents, PersonContents
from facepipe.gallery.names import mended_name
from facepipe.gallery.storage.schema import SEALED_COLUMNS
from facepipe.gallery.storage.store import Store


def read_contents(store: Store) -> Contents:
    """Read everything, with names and thresholds as they may be stored. Inside a transaction.

    Raises:
        GalleryError: A row is damaged; elsewhere it would get a new checksum, and nobody would know.
    """
    for table in SEALED_COLUMNS:
        store.require_whole(table)
    people: dict[str, PersonContents] = {}
    ids, templates = store.people.ids(), store.templates.contents()
    taken = set(ids)
    for person in sorted(store.people.all(), key=lambda person: person.name):
        name = mended_name(person.name, taken)
        taken.add(name)
        people[name] = PersonContents(templates[ids[person.name]], person.threshold_l2)
    unknown = [face for _, face in store.unknown.new_templates()]
    return Contents(people, unknown, store.settings.threshold())


def add_contents(store: Store, contents: Contents) -> int:
    """Store what is not stored yet, and the thresholds of new people; returns how many templates.

    Inside a changing transaction. The gallery's threshold is taken over where it was empty.
    """
    was_empty = not any(store.counts())
    known = set(store.people.names())
    count = len(store.add_all({name: person.templates for name, person in contents.people.items()}))
    for name, person in contents.people.items():
        if name not in known and person.threshold_l2 is not None:
            store.people.set_threshold(name, person.threshold_l2)
    store.add_unknown(contents.unknown)
    if was_empty and contents.threshold_l2 is not None:
        store.settings.set_threshold(contents.threshold_l2)
    return count
