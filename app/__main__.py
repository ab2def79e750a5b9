"""Entry point of the API process: `python -m app` serves until a signal says stop."""

import gc


def main() -> None:
    """Serve the API."""
    # Nearly all objects that the imports make stay: a search for garbage among them takes a tenth of the start. The
    # collector is enabled again when the API is ready.
    gc.disable()
    from app.main import serve

    serve()


if __name__ == "__main__":
    main()
