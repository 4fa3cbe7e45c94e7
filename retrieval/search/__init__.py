"""Search: exact top-k on the mesh, BM25, and the fusion of the two."""
