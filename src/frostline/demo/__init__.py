"""A frozen network that changes, and what to do about it: told with real digits."""
