"""What stands behind ``Accumulator``: a window that is open while somebody else runs the loop."""
