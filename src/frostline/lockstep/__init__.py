"""Several batches through one model at once, in step at every norm that looks across the batch."""
