"""Exact gradients whose memory does not depend on the window: one microbatch at a time.

The forwards go in step from norm to norm. Whoever waits leaves its memory on a store, and its
graph is cut there: what it holds gets a new beginning, and the gradient that arrives there is kept
for the piece before. Backward goes from the last norm to the first, for each microbatch in turn:
first the sums that a norm needs over all of them, then each one's piece.

Prior art: Ioffe 2021 (extreme normalisation), L2L (Pudipeddi 2020), GradCache (Gao 2021), and
darknet's ``optimized_memory=3``.
"""
