"""`python -m retort`."""

from retort.cli import main

if __name__ == "__main__":
    main()
