"""Dense, sparse and generative retrieval on the jaxscale mesh."""
