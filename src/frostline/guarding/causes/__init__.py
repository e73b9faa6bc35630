"""Causes: whose doing a change was, from evidence."""
