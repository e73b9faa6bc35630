"""What becomes of running statistics where each microbatch is normalised with itself."""
