"""Vocabulary that every other part imports: errors, faces, files, paths, processors."""
