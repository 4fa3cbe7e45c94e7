"""The demo: one story from the documentation on this machine to a searchable, measured index and a report."""
