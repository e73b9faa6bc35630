"""Results as text, JSON and HTML; knows no torch."""
