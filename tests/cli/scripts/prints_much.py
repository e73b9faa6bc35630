"""More output than a pipe holds."""

# ruff: noqa: T201

import sys

for i in range(20_000):
    print(f"line {i} of standard output")
print("and of standard error", file=sys.stderr)
