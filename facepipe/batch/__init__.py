"""Whole folders: analyzed by all cores, remembered in a job file, written as files for people."""
