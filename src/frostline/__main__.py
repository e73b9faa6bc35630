"""Run the command line with `python -m frostline`."""

from frostline.cli.main import main

if __name__ == "__main__":
    main()
