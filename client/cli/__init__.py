"""The `temper` command. Its modules import at start only what `temper --help` needs, and the rest inside commands."""
