"""Reads stdin and answers."""

# ruff: noqa: T201

name = input()
print(f"hello {name}")
