"""Files of the retrieval world: BEIR folders, TREC runs and judgements."""
