"""`python -m user_http_client`."""

from .cli.command import main

if __name__ == "__main__":
    main()
