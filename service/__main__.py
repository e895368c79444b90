"""`python -m service` is `axon`."""

from service.cli import main

if __name__ == "__main__":
    main()
