"""`python -m dali_aesthetic`: the same as the command `dali-aesthetic`."""

from dali_aesthetic.cli import main

if __name__ == "__main__":
    main()
