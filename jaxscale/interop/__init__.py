"""Model folders of the Hugging Face world, in and out."""
