"""A retriever measured on several BEIR folders against BM25 and the fusion of both, and against another retriever."""
