"""The command line of the library: its options, and its output for a terminal."""
