"""What three functions and a Flax model are enough for; each file runs by `python -m examples.NAME`."""
