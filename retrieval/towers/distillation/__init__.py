"""Distils a small query tower from a large one, into the large one's space; documents and index stay as they are."""
