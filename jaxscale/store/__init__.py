"""The durable layer: committed directories, checksummed arrays and checkpoints. Nothing acknowledged is ever lost."""
