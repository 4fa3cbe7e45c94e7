"""Corpora that are made here out of what a machine already has."""
