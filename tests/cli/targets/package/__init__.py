"""A package whose parts import each other relatively."""
