"""One module a verb: a frozen dataclass `Command` whose fields are the flags and whose `run` does the work."""
