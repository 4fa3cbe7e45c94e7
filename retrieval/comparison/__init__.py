"""Two runs compared query by query: which won, which lost, and what each of them showed."""
