"""Whole folders: looked at by all cores, remembered in a job file, told in files people can use."""
