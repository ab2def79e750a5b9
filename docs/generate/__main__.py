"""Write the pages of docs/reference/ from the code: `python -m docs.generate`."""

from docs.generate import REFERENCE, pages


def main() -> None:
    """Write every generated page."""
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)


if __name__ == "__main__":
    main()
