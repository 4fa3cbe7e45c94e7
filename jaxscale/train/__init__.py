"""Training: a pure step, a short host loop, and a run folder that any kill leaves resumable."""
