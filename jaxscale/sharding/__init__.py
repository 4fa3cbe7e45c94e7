"""Where every array lives: derived from how the computation uses it, explained, and refused if it would be silent."""
