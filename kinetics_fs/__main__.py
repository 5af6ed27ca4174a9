"""`python -m kinetics_fs`."""

from kinetics_fs.cli import main

if __name__ == "__main__":
    main()
