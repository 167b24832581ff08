"""`python -m segment_anything` is the command `segment-anything`."""

from segment_anything.cli import main

if __name__ == "__main__":
    main()
