"""`python -m rome_lens`: the same as `rome-lens`."""

from rome_lens.cli import main

if __name__ == "__main__":
    main()
