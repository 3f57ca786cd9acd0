"""From raw tables to a Dataset: schema, sources, prepare, split, batches."""
